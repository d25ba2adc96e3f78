//! Why an OVA is not taken.

use std::io;

use crate::tape::TapeError;

/// Why an OVA is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OvaError {
    /// The archive itself.
    #[error(transparent)]
    Tape(#[from] TapeError),
    /// It does not begin with a description.
    #[error("the archive's first entry is no .ovf description; an OVA begins with one")]
    NoDescription,
    /// The description makes no sense.
    #[error("the OVA's description can not be used: {0}")]
    Description(String),
    /// The description leads out of the archive.
    #[error("the OVA's disk is said to be at {0:?}, which is not in the archive")]
    ExternalFile(String),
    /// There is no disk.
    #[error("the OVA has no disk")]
    NoDisk,
    /// There are several.
    #[error("the OVA has {0} disks; import each as an image of its own")]
    SeveralDisks(usize),
    /// The disk is compressed, or cut into chunks.
    #[error("the OVA's disk is compressed or cut into chunks within the archive; pack it as one plain file")]
    DiskCompressed,
    /// The disk is not whole.
    #[error("the OVA's disk holds only the differences to another disk; flatten it first")]
    DiskParent,
    /// The disk is too large.
    #[error("the OVA's disk file is longer than the {limit_bytes} bytes allowed")]
    DiskTooLarge {
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// An entry is too large for what it is.
    #[error("entry {path:?} of the OVA is longer than the {limit_bytes} bytes allowed for it")]
    EntryTooLarge {
        /// Its path.
        path: String,
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// Too many entries.
    #[error("the OVA has more entries than an import looks at")]
    TooManyEntries,
    /// The same entry twice.
    #[error("entry {0:?} is in the OVA twice")]
    Duplicate(String),
    /// An entry nobody told of.
    #[error("entry {0:?} of the OVA is not in its description")]
    Unlisted(String),
    /// A manifest is wanted.
    #[error("the OVA has no manifest (.mf), which is demanded here")]
    NoManifest,
    /// The manifest makes no sense.
    #[error("line {0} of the OVA's manifest can not be read: SHA1, SHA256 or SHA512 (NAME)= DIGEST is expected")]
    Manifest(usize),
    /// A file is not what the manifest says.
    #[error("file {0:?} of the OVA is not in its manifest, missing, or has another digest than the manifest states")]
    Digest(String),
}

impl OvaError {
    /// A stable name for programs; the crate documents them.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Tape(error) => error.code(),
            Self::NoDescription => "ovf_missing",
            Self::Description(_) => "ovf_damaged",
            Self::ExternalFile(_) => "ovf_external_file",
            Self::NoDisk => "ova_no_disk",
            Self::SeveralDisks(_) => "ova_several_disks",
            Self::DiskCompressed => "ova_disk_compressed",
            Self::DiskParent => "ova_disk_parent",
            Self::DiskTooLarge { .. } => "ova_disk_too_large",
            Self::EntryTooLarge { .. } => "archive_entry_too_large",
            Self::TooManyEntries => "archive_too_many_entries",
            Self::Duplicate(_) => "archive_duplicate",
            Self::Unlisted(_) => "archive_unlisted",
            Self::NoManifest => "manifest_missing",
            Self::Manifest(_) => "manifest_damaged",
            Self::Digest(_) => "manifest_digest",
        }
    }

    /// The error behind one that reading the disk returned.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Tape(TapeError::Read(error)) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}
