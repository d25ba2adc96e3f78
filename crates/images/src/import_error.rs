//! Why an import failed.

use std::io;
use std::path::{Path, PathBuf};

use image_formats::convert::ConvertError;
use image_formats::ova::OvaError;
use image_formats::tape::TapeError;
use image_formats::{DecompressError, Refusal};
use image_sources::SourceError;
use image_trust::BadSource;

use crate::{PullError, StoreError, StoreName};

/// Why an import failed. Nothing but what a later import can go on with stays behind.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The registry, or what is in it.
    #[error(transparent)]
    Registry(PullError),
    /// The source.
    #[error(transparent)]
    Source(SourceError),
    /// The source has no name that a trust policy could be asked about.
    #[error(transparent)]
    Location(BadSource),
    /// The image is not taken.
    #[error(transparent)]
    Refused(Refusal),
    /// Its compression.
    #[error(transparent)]
    Unpack(DecompressError),
    /// The archive it is in.
    #[error(transparent)]
    Ova(OvaError),
    /// Its format could not be converted.
    #[error(transparent)]
    Convert(ConvertError),
    /// A disk of this host could not be read.
    #[error("the disk cannot be read")]
    LocalDisk(#[source] Box<disk_image::ConvertError>),
    /// It is not what it should be, or nobody trusted says so.
    #[error(transparent)]
    Untrusted(Box<image_trust::policy::Refusal>),
    /// A file that should prove something.
    #[error("the {what} cannot be fetched")]
    Proof {
        /// Sums file or signature.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<SourceError>,
    },
    /// It is no such file.
    #[error("the {what} is longer than the {limit_bytes} bytes one may have; check its address")]
    ProofTooLong {
        /// Sums file or signature.
        what: &'static str,
        /// The limit, bytes.
        limit_bytes: usize,
    },
    /// The client's bytes ended early, or the reader failed.
    #[error("the image's bytes broke off after {after_bytes}; send it again")]
    Upload {
        /// Bytes that came.
        after_bytes: u64,
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// The store may not hold more.
    #[error(
        "store {store} may hold {limit_bytes} bytes, which the image would exceed; remove images or raise its quota"
    )]
    Quota {
        /// Which.
        store: StoreName,
        /// The quota, bytes.
        limit_bytes: u64,
    },
    /// The file system is full.
    #[error("no space left for the image under {}: free some, or choose another store", .0.display())]
    DiskFull(PathBuf),
    /// There is no such store.
    #[error("there is no store {0}; name one of the configuration")]
    NoStore(StoreName),
    /// The store, or the image in it.
    #[error(transparent)]
    Store(StoreError),
    /// A file of the store could not be worked on.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled it.
    #[error("the import was cancelled")]
    Cancelled,
}

impl ImportError {
    /// A stable name for programs. Those of the parts are documented there: `image-sources`, `image-formats`, `image-trust`; the
    /// registry's are `registry_…`, the rest `disk_unreadable`, `upload_broke_off`, `store_quota`, `store_full`, `no_such_store`, `store_…`, `io`,
    /// `cancelled`, `proof_too_long`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Registry(error) => error.code(),
            Self::Source(error) => error.code(),
            Self::Proof { source, .. } => source.code(),
            Self::Location(error) => error.code(),
            Self::Refused(refusal) => refusal.code(),
            Self::Unpack(error) => error.code(),
            Self::Ova(error) => error.code(),
            Self::Convert(error) => error.code(),
            Self::LocalDisk(_) => "disk_unreadable",
            Self::Untrusted(refusal) => refusal.code(),
            Self::ProofTooLong { .. } => "proof_too_long",
            Self::Upload { .. } => "upload_broke_off",
            Self::Quota { .. } => "store_quota",
            Self::DiskFull(_) => "store_full",
            Self::NoStore(_) => "no_such_store",
            Self::Store(error) => error.code(),
            Self::Io { .. } => "io",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the image is at fault: the same import fails again until somebody changes the image, the request or the policy.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Untrusted(_) | Self::Location(_) | Self::ProofTooLong { .. } => true,
            Self::Unpack(error) => !matches!(error, DecompressError::Input(_)),
            Self::Ova(error) => !matches!(error, OvaError::Tape(TapeError::Read(_))),
            Self::Convert(error) => matches!(
                error,
                ConvertError::Refused(_)
                    | ConvertError::NotConvertible(_)
                    | ConvertError::Failed { .. }
                    | ConvertError::Killed { .. }
                    | ConvertError::Disagreement(_)
            ),
            Self::Registry(error) => error.is_refusal(),
            _ => false,
        }
    }

    /// Whether the store is at fault: another one may take the image.
    pub(crate) const fn is_of_store(&self) -> bool {
        matches!(
            self,
            Self::Quota { .. } | Self::DiskFull(_) | Self::Store(_) | Self::Io { .. }
        )
    }

    /// Whether the same import may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Source(error) => error.is_transient(),
            Self::Proof { source, .. } => source.is_transient(),
            Self::Upload { .. } | Self::DiskFull(_) | Self::Quota { .. } | Self::Cancelled => true,
            Self::Convert(error) => matches!(error, ConvertError::DiskFull | ConvertError::TooSlow { .. }),
            Self::Store(error) => matches!(error, StoreError::Unavailable { .. }),
            _ => false,
        }
    }

    /// An error of the store's files; a full file system is told apart.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            _ => Self::Io { action, path, source },
        }
    }

    /// What a read of the stream really met; `after_bytes` of the source had come.
    pub(crate) fn reading(error: io::Error, after_bytes: u64) -> Self {
        let error = match error.downcast::<DecompressError>() {
            Ok(DecompressError::Input(error)) => return Self::reading(error, after_bytes),
            Ok(error) => return Self::Unpack(error),
            Err(error) => error,
        };
        let error = match error.downcast::<OvaError>() {
            Ok(error) => return Self::of_ova(error, after_bytes),
            Err(error) => error,
        };
        match error.downcast::<SourceError>() {
            Ok(error) => Self::Source(error),
            Err(source) => Self::Upload { after_bytes, source },
        }
    }

    pub(crate) fn of_ova(error: OvaError, after_bytes: u64) -> Self {
        match error {
            OvaError::Tape(TapeError::Read(error)) => Self::reading(error, after_bytes),
            error => Self::Ova(error),
        }
    }
}

impl From<PullError> for ImportError {
    fn from(error: PullError) -> Self {
        match error {
            PullError::Cancelled => Self::Cancelled,
            PullError::DiskFull { path } => Self::DiskFull(path),
            PullError::Io { action, path, source } => Self::Io { action, path, source },
            error => Self::Registry(error),
        }
    }
}

impl From<Refusal> for ImportError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ConvertError> for ImportError {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Refused(refusal) => Self::Refused(refusal),
            ConvertError::Cancelled => Self::Cancelled,
            error => Self::Convert(error),
        }
    }
}
