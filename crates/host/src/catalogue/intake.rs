//! How bytes come into the store: the one place that asks the image store to fetch anything.

use api_types::{ErrorCode, ImageImport};
use images::{ImageDigest, ImportError, ImportSource, Origin, PullError, Reference};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::begun;
use crate::context::Context;
use crate::failure::Failure;

/// Methods of import that this daemon carries out.
pub(crate) const METHODS: [&str; 1] = ["registry"];

/// What came in.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    /// The sealed image.
    pub(crate) digest: ImageDigest,
    /// Whether the store had it before.
    pub(crate) was_there: bool,
    /// What tells this version of the source from the next: for a registry the digest of its manifest.
    pub(crate) origin: String,
    /// The normalised reference, for a registry.
    pub(crate) reference: Option<String>,
}

/// Why nothing came in.
#[derive(Debug, Clone)]
pub(crate) struct IntakeError {
    /// Stable text for programs: which check it was, where [`Failure::code`] says what kind of trouble.
    pub(crate) code: &'static str,
    /// As callers see it.
    pub(crate) failure: Failure,
    /// Whether the image itself is at fault, so that another try would end the same.
    pub(crate) is_refusal: bool,
}

impl IntakeError {
    /// Somebody called it off.
    pub(crate) fn cancelled() -> Self {
        Self::of(&PullError::Cancelled)
    }

    /// Whether somebody called it off.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.failure.code == ErrorCode::Cancelled
    }

    fn of(error: &PullError) -> Self {
        Self {
            code: error.code(),
            is_refusal: error.is_refusal(),
            failure: Failure::of(pull_code(error), error),
        }
    }

    fn of_import(error: &ImportError) -> Self {
        let code = match error {
            ImportError::Registry(error) => return Self::of(error),
            ImportError::Cancelled => ErrorCode::Cancelled,
            ImportError::DiskFull(_) | ImportError::Quota { .. } => ErrorCode::NoSpace,
            error if error.is_refusal() => ErrorCode::ImageRefused,
            error if error.is_transient() => ErrorCode::RegistryUnavailable,
            _ => ErrorCode::Internal,
        };
        Self {
            code: error.code(),
            failure: Failure::of(code, error),
            is_refusal: error.is_refusal(),
        }
    }

    /// Daemons ended over it.
    pub(crate) fn begun_too_often() -> Self {
        Self {
            code: "begun_too_often",
            failure: begun::failure(),
            is_refusal: true,
        }
    }

    fn refused(failure: Failure) -> Self {
        Self {
            code: "import_not_possible",
            failure,
            is_refusal: true,
        }
    }
}

/// Whether an import can be begun: its method is carried out here, and what it names can be read.
pub(crate) fn check(from: &ImageImport) -> Result<(), Failure> {
    const REFUSED: &str = "the import can not be begun";
    match from {
        ImageImport::Registry { reference } => match reference.parse::<Reference>() {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::refused_field(REFUSED, "reference", error.to_string())),
        },
        other => {
            let text = format!(
                "{} is not enabled here; take one of: {}",
                other.method(),
                METHODS.join(", ")
            );
            Err(Failure::refused_field(REFUSED, "method", text))
        }
    }
}

/// Fetches and seals what `from` names, unless the store has it.
pub(crate) async fn take_in(
    context: &Context,
    from: &ImageImport,
    progress: &watch::Sender<images::Progress>,
    cancel: &CancellationToken,
) -> Result<Intake, IntakeError> {
    let parsed = reference_of(from)?;
    let pulled = context.store.pull(&parsed, progress, cancel).await;
    let pulled = pulled.map_err(|error| IntakeError::of(&error))?;
    Ok(Intake {
        origin: pulled
            .image
            .index_digest
            .as_ref()
            .unwrap_or(&pulled.image.digest)
            .to_string(),
        digest: pulled.image.digest,
        was_there: pulled.was_there,
        reference: Some(parsed.to_string()),
    })
}

/// What the source has now, without fetching it.
pub(crate) async fn probe(context: &Context, from: &ImageImport) -> Result<String, IntakeError> {
    let reference = reference_of(from)?;
    match context.store.probe(&ImportSource::Registry { reference }).await {
        Ok(Origin::Registry { digest }) => Ok(digest.to_string()),
        // Of no other kind is what a registry has.
        Ok(origin) => Ok(format!("{origin:?}")),
        Err(error) => Err(IntakeError::of_import(&error)),
    }
}

fn reference_of(from: &ImageImport) -> Result<Reference, IntakeError> {
    check(from).map_err(IntakeError::refused)?;
    let ImageImport::Registry { reference } = from else {
        return Err(IntakeError::cancelled()); // Refused above.
    };
    let parsed = reference.parse::<Reference>();
    parsed.map_err(|error| IntakeError::refused(Failure::of(ErrorCode::InvalidSpec, &error)))
}

pub(crate) const fn pull_code(error: &PullError) -> ErrorCode {
    match error {
        PullError::NotFound(_) | PullError::Unauthorized(_) => ErrorCode::ImageUnknown,
        PullError::Unreachable { .. } | PullError::Status { .. } | PullError::BrokeOff { .. } => {
            ErrorCode::RegistryUnavailable
        }
        PullError::Insecure { .. } => ErrorCode::InsecureRegistry,
        PullError::DigestMismatch { .. } | PullError::TooLong { .. } => ErrorCode::DigestMismatch,
        PullError::DiskFull { .. } => ErrorCode::NoSpace,
        PullError::Cancelled => ErrorCode::Cancelled,
        PullError::Io { .. } => ErrorCode::Internal,
        PullError::Manifest { .. }
        | PullError::Layer { .. }
        | PullError::NoDisk { .. }
        | PullError::Ambiguous { .. }
        | PullError::Disk { .. }
        | PullError::Cmdline(_)
        | PullError::Convert { .. } => ErrorCode::ImageRefused,
    }
}
