//! Why an import failed.

use std::path::{Path, PathBuf};

use crate::{CredentialsError, ImageDigest, LayerError};

/// A cause whose type does not matter to callers.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an import failed. Whatever the reason, nothing but layers that a later pull can use stays behind.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry does not have it.
    #[error("image {0} is not in its registry; check the spelling of repository and tag")]
    NotFound(String),
    /// The registry wants credentials, or hides that the image does not exist.
    #[error(
        "registry refuses access to {0}; check the spelling and the credentials in registry_auth_file, or make the repository public"
    )]
    Unauthorized(String),
    /// The file with credentials is of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No connection, or none of use.
    #[error("cannot reach registry {registry}; {hint}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What the operator may do.
        hint: String,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// It answers, but not in TLS, and plain HTTP is not allowed to it.
    #[error(
        "registry {registry} does not answer in TLS, so it seems to speak plain http; \
         if every network on the way is trusted, add {registry:?} to insecure_registries in the configuration"
    )]
    Insecure {
        /// Host and port.
        registry: String,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// It leads to where nothing is fetched from or sent to: by its address, a redirect, or its token service.
    #[error("registry {registry} is, or leads to, where the configuration does not allow it ([images.registry])")]
    Denied {
        /// Host and port.
        registry: String,
        /// Which rule.
        #[source]
        source: Cause,
    },
    /// It answers what makes no sense.
    #[error("registry {registry} answers wrongly: {problem}")]
    BadAnswer {
        /// Host and port.
        registry: String,
        /// What is wrong.
        problem: String,
    },
    /// The registry answered with a failure.
    #[error("registry {registry} answered with status {status}; pull again later: it goes on where it ended")]
    Status {
        /// Host and port.
        registry: String,
        /// HTTP status.
        status: u16,
    },
    /// The connection broke, or the answer ended early, while a blob was coming.
    #[error("blob {digest} broke off after {done_bytes} of {total_bytes} bytes; pull again to continue there")]
    BrokeOff {
        /// The blob.
        digest: ImageDigest,
        /// Bytes kept.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// What the connection said; none if the answer ended without an error.
        #[source]
        source: Option<Cause>,
    },
    /// Content is not what its name says. It was thrown away.
    #[error("{subject} should have digest {expected} but has {found}; the registry or the way to it damages content")]
    DigestMismatch {
        /// What was checked.
        subject: String,
        /// The digest it was asked for by.
        expected: ImageDigest,
        /// The digest of what came.
        found: ImageDigest,
    },
    /// The registry sent more than the manifest states. It was thrown away.
    #[error("blob {digest} is longer than the {expected_bytes} bytes its manifest states")]
    TooLong {
        /// The blob.
        digest: ImageDigest,
        /// Bytes stated.
        expected_bytes: u64,
    },
    /// Manifest, index or configuration make no sense or use something unsupported.
    #[error("manifest of {reference} cannot be used: {problem}")]
    Manifest {
        /// The image.
        reference: String,
        /// What is wrong.
        problem: String,
    },
    /// A layer cannot be read.
    #[error("layer {digest} cannot be unpacked")]
    Layer {
        /// The layer.
        digest: ImageDigest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// There is nothing to boot from.
    #[error(
        "image has no disk: put exactly one file at /disk/NAME.qcow2, .raw or .img ({links} links under /disk were not followed)"
    )]
    NoDisk {
        /// Links seen where a disk could be.
        links: u64,
    },
    /// It is unclear which file is meant.
    #[error("image has several files that could be its {role}: {}; keep one", paths.join(", "))]
    Ambiguous {
        /// `disk`, `kernel` or `initrd`.
        role: &'static str,
        /// All of them.
        paths: Vec<String>,
    },
    /// The kernel command line is of no use.
    #[error("command line of the image (/boot/cmdline or label io.karat.cmdline) {0}")]
    Cmdline(&'static str),
    /// The file system of the store is full.
    #[error("no space left for the image under {path}: free some, or remove images")]
    DiskFull {
        /// Root of the store.
        path: PathBuf,
    },
    /// A file of the store could not be worked on.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The caller cancelled it.
    #[error("the pull was cancelled")]
    Cancelled,
}

impl PullError {
    /// A stable name for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "registry_not_found",
            Self::Unauthorized(_) => "registry_unauthorized",
            Self::Credentials(_) => "registry_credentials",
            Self::Unreachable { .. } => "registry_unreachable",
            Self::Insecure { .. } => "registry_not_tls",
            Self::Denied { .. } => "registry_denied",
            Self::BadAnswer { .. } => "registry_bad_answer",
            Self::Status { .. } => "registry_status",
            Self::BrokeOff { .. } => "registry_broke_off",
            Self::DigestMismatch { .. } => "registry_digest_mismatch",
            Self::TooLong { .. } => "registry_too_long",
            Self::Manifest { .. } => "registry_manifest",
            Self::Layer { .. } => "container_layer",
            Self::NoDisk { .. } => "container_no_disk",
            Self::Ambiguous { .. } => "container_ambiguous",
            Self::Cmdline(_) => "container_cmdline",
            Self::DiskFull { .. } => "store_full",
            Self::Io { .. } => "io",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the image is at fault: the same pull fails again until somebody changes it.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::TooLong { .. }
                | Self::Manifest { .. }
                | Self::Layer { .. }
                | Self::NoDisk { .. }
                | Self::Ambiguous { .. }
                | Self::Cmdline(_)
        )
    }

    /// True if the same pull may succeed later without anybody changing the image or the configuration.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Status { .. }
                | Self::BrokeOff { .. }
                | Self::DiskFull { .. }
                | Self::Cancelled
        )
    }

    /// An error of the store's files; a full file system is told apart.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { action, path, source },
        }
    }
}
