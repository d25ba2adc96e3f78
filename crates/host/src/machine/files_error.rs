//! Why a machine can not have its files.

use std::io;
use std::path::PathBuf;

use api_types::ErrorCode;

use crate::failure::{Failure, chain};

/// Why the files of a machine can not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// A file users name.
    #[error("{path:?} can not be opened")]
    Named {
        field: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A link in it leads elsewhere.
    #[error("a link in {path:?} leads out of the allowed directories (file_roots); put the file itself there")]
    LeadsOut { field: String, path: PathBuf },
    /// It is something that can not be used as what it is named for.
    #[error("{path:?} is no {wanted}")]
    WrongKind {
        field: String,
        path: PathBuf,
        wanted: &'static str,
    },
    /// A disk's images.
    #[error("the disk can not be used")]
    Chain {
        field: String,
        #[source]
        source: Box<disk_image::ResolveError>,
    },
    /// The volume is not there, or not ready.
    #[error("{failure}")]
    Volume { field: String, failure: Box<Failure> },
    /// A volume that leads to another one, or to an image it was not made from.
    #[error("{path:?} is backed by {backing:?}, which it was not made from: convert it to an image by itself")]
    Stranger {
        field: String,
        path: PathBuf,
        backing: String,
    },
    /// The machine's own disk.
    #[error("the machine's root disk {path:?} can not be used")]
    Root {
        path: PathBuf,
        #[source]
        source: Box<disk_image::ResolveError>,
    },
    /// The machine's own disk leads to what it was not made from.
    #[error("the machine's root disk {path:?} is backed by {backing:?}, which is not the image it was made from")]
    RootStranger { path: PathBuf, backing: String },
    /// Somebody else has it.
    #[error(
        "disk {path:?} is in use by another machine or program; stop that one, or attach the disk read-only to both"
    )]
    InUse { path: PathBuf },
    /// More than travel in one message.
    #[error(
        "the machine's disks and network queues are {files} files, and {} can be handed over: disk {disk} alone has {layers}; make \
         one image of it (karat volume convert, or karat volume stream while it runs)",
        control::FDS_MAX
    )]
    TooMany { files: usize, disk: u32, layers: usize },
    /// A file of the daemon's own.
    #[error("can not open {path:?}, which belongs to the machine")]
    Own {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The image is gone or damaged.
    #[error("the machine's image can not be used")]
    Image(#[source] images::StoreError),
    /// Nothing to boot.
    #[error("there is no kernel to boot: the machine names none and its image brings none; set boot.kernel")]
    NoKernel,
    /// Opening it would make it, which is not what a machine on a network of the host is about.
    #[error("there is no network device {name}; make it with: ip tuntap add {name} mode tap multi_queue vnet_hdr")]
    NoInterface { name: String },
    /// A network device.
    #[error("network device {name} can not be opened")]
    Tap {
        name: String,
        #[source]
        source: tap::OpenError,
    },
}

impl FilesError {
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Named { .. }
            | Self::LeadsOut { .. }
            | Self::WrongKind { .. }
            | Self::Chain { .. }
            | Self::Stranger { .. }
            | Self::TooMany { .. }
            | Self::NoKernel => ErrorCode::InvalidSpec,
            Self::Volume { failure, .. } => failure.code,
            Self::InUse { .. } => ErrorCode::InUse,
            Self::Root { .. } | Self::RootStranger { .. } => ErrorCode::DiskRefused,
            Self::Own { .. } => ErrorCode::Internal,
            Self::Image(error) => crate::failure::store_code(error),
            Self::NoInterface { .. } | Self::Tap { .. } => ErrorCode::HostLacks,
        }
    }
}

impl FilesError {
    /// The field of the specification that names the file, if one does.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Self::Named { field, .. }
            | Self::LeadsOut { field, .. }
            | Self::WrongKind { field, .. }
            | Self::Chain { field, .. }
            | Self::Volume { field, .. }
            | Self::Stranger { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<FilesError> for Failure {
    fn from(error: FilesError) -> Self {
        match error.field() {
            Some(field) => Self::new(error.code(), format!("{field}: {}", chain(&error))),
            None => Self::of(error.code(), &error),
        }
    }
}
