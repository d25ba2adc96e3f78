//! Why a store cannot be opened, and why an image in it cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::{ImageDigest, StoreName};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it open.
    #[error("image store {0} is in use by another process; stop that one, or choose another state directory")]
    InUse(PathBuf),
    /// Its file system is missing.
    #[error("image store {0} has to be a mount point and is none; mount its file system, or clear must_be_mounted")]
    NotMounted(PathBuf),
    /// Another directory is in its place.
    #[error(
        "{root} is not the image store that was there before; mount the file system that has it, or remove {remembered} to begin \
         anew with what is there"
    )]
    Stranger {
        /// Where the store was.
        root: PathBuf,
        /// The file that has its identity.
        remembered: PathBuf,
    },
    /// Its file system takes longer than anybody waits.
    #[error(
        "the file system of image store {root} did not answer within {seconds} s; look after its server or its disk"
    )]
    Silent {
        /// Where the store is.
        root: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file of it cannot be worked on.
    #[error("cannot {action} {path} of the image store")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why an image cannot be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such image.
    #[error("no image {0} in the store; pull it first")]
    NotFound(ImageDigest),
    /// Its files are not what they should be.
    #[error("image {digest} is damaged ({problem}); remove it and pull it again")]
    Damaged {
        /// The image.
        digest: ImageDigest,
        /// What is wrong.
        problem: String,
    },
    /// It does not bring this file.
    #[error("image {digest} has no {part}")]
    NoSuchPart {
        /// The image.
        digest: ImageDigest,
        /// `kernel` or `initrd`.
        part: &'static str,
    },
    /// The store is not there at the moment.
    #[error(
        "image store {store} is not available: {problem}; its images can be used again when its file system is back"
    )]
    Unavailable {
        /// Which.
        store: StoreName,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be worked on.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// A stable name for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "store_no_image",
            Self::Damaged { .. } => "store_damaged",
            Self::NoSuchPart { .. } => "store_no_part",
            Self::Unavailable { .. } => "store_unavailable",
            Self::Io { .. } => "io",
        }
    }

    /// An error with one of the store's files.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
