//! How bytes come into the store: the one place that asks the image store to fetch anything.

use std::sync::Arc;
use std::time::SystemTime;

use api_types::{ErrorCode, ImageImport};
use image_catalog::ImageRecord;
use image_formats::{Expectations, Format, Refusal};
use image_sources::{Identity, SourceError};
use image_trust::x509::X509Error;
use images::{ImageDigest, ImportError, ImportRequest, ImportSource, Origin, PullError, StoreName};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::body::Received;
use super::frozen::Frozen;
use super::lineage::Lineage;
use super::source;
use crate::begun;
use crate::context::Context;
use crate::failure::Failure;

/// Longest text that tells one version of a source from the next, bytes; of what is longer, the digest does.
const ORIGIN_MAX: usize = 256;

/// An import to be carried out.
pub(crate) struct Wanted<'a> {
    /// Where the data is.
    pub(crate) from: &'a ImageImport,
    /// The record it is for, if there is one.
    pub(crate) record: Option<&'a ImageRecord>,
    /// Largest disk, bytes, if it may be less than any image.
    pub(crate) max_disk_bytes: Option<u64>,
    /// What a client sends.
    pub(crate) received: Option<Received>,
    /// A disk of this host that nobody writes.
    pub(crate) frozen: Option<Frozen>,
}

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
    /// The store it was imported to first.
    pub(crate) store: StoreName,
    /// All stores it was imported to.
    pub(crate) stores: Vec<String>,
    /// Stores that did not take it, where that was allowed, and why.
    pub(crate) failed: Vec<(String, String)>,
    /// Where a disk of this host was from.
    pub(crate) lineage: Option<Lineage>,
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
    /// What came into a store all the same, and is to go unless somebody wants it.
    pub(crate) left: Option<ImageDigest>,
}

impl IntakeError {
    /// Somebody called it off.
    pub(crate) fn cancelled() -> Self {
        Self::of(&ImportError::Cancelled)
    }

    /// Whether somebody called it off.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.failure.code == ErrorCode::Cancelled
    }

    /// Daemons ended over it.
    pub(crate) fn begun_too_often() -> Self {
        Self {
            code: "begun_too_often",
            failure: begun::failure(),
            is_refusal: true,
            left: None,
        }
    }

    /// A disk of this host could not be had.
    pub(crate) fn not_frozen(failure: Failure) -> Self {
        Self {
            code: "snapshot_failed",
            failure,
            is_refusal: false,
            left: None,
        }
    }

    fn of(error: &ImportError) -> Self {
        Self {
            code: error.code(),
            failure: Failure::of(import_code(error), error),
            is_refusal: error.is_refusal(),
            left: None,
        }
    }

    /// It can not even be begun.
    pub(crate) fn refused(failure: Failure) -> Self {
        Self {
            code: "import_not_possible",
            failure,
            is_refusal: true,
            left: None,
        }
    }

    /// The key of this host can not sign it.
    fn not_signed(error: &X509Error) -> Self {
        let text = format!("images of disks are signed here ([trust.snapshots]), and this one can not be: {error}");
        Self {
            code: error.code(),
            failure: Failure::new(ErrorCode::HostLacks, text),
            is_refusal: false,
            left: None,
        }
    }

    fn nothing_received() -> Self {
        let text = "what was sent is gone: the daemon was restarted, or the store lost it meanwhile; send it again";
        Self {
            code: "upload_lost",
            failure: Failure::new(ErrorCode::Cancelled, text),
            is_refusal: false,
            left: None,
        }
    }
}

/// Fetches and seals what `wanted` names, unless the store has it.
pub(crate) async fn take_in(
    context: &Context,
    mut wanted: Wanted<'_>,
    progress: &watch::Sender<images::Progress>,
    cancel: &CancellationToken,
) -> Result<Intake, IntakeError> {
    let mut lineage = wanted.frozen.as_ref().map(|frozen| frozen.lineage.clone());
    let signer = context.config.images.trust.snapshot_signer();
    let signer = signer.filter(|_| lineage.is_some());
    // Rather than when all of the disk was read.
    if let Some(Err(error)) = signer.map(|signer| signer.check(SystemTime::now())) {
        return Err(IntakeError::not_signed(&error));
    }
    // Copies of disks go when this is over.
    let _part = wanted.frozen.as_mut().and_then(|frozen| frozen.part.take());
    let allow_failure = wanted
        .from
        .options()
        .and_then(|options| options.allow_failure)
        .unwrap_or(true);
    let most = most_bytes(context, &wanted);
    let stores = source::stores(context, wanted.from).map_err(IntakeError::refused)?;
    let (request, reference) = request(context, &mut wanted, stores)?;
    let imported = context.stores.import(request, allow_failure, progress, cancel).await;
    let placed = imported.map_err(|not_placed| IntakeError {
        left: not_placed.left,
        ..IntakeError::of(&not_placed.error)
    })?;
    let size_bytes = placed.imported.image.disk.virtual_bytes;
    if placed.imported.was_there && size_bytes > most {
        // It came when more was allowed, or for somebody who allows more.
        let error = ImportError::from(Refusal::VirtualSize {
            size_bytes,
            limit_bytes: most,
        });
        return Err(IntakeError {
            left: Some(placed.imported.image.digest),
            ..IntakeError::of(&error)
        });
    }
    let digests = placed.imported.digests.as_ref();
    if let (Some(lineage), Some(signer)) = (&mut lineage, signer) {
        lineage.signature = digests
            .and_then(|digests| signer.sign(digests))
            .into_iter()
            .flatten()
            .collect();
    }
    let failed = placed.failed.iter();
    let first = placed.stores.first().unwrap_or_else(|| context.store.name()).clone();
    Ok(Intake {
        failed: failed
            .map(|(store, error)| (store.to_string(), crate::failure::chain(error)))
            .collect(),
        origin: match &lineage {
            Some(lineage) => lineage.origin(),
            None => origin_text(&placed.imported.origin),
        },
        lineage,
        digest: placed.imported.image.digest,
        was_there: placed.imported.was_there,
        reference,
        stores: placed.stores.into_iter().map(String::from).collect(),
        store: first,
    })
}

/// Largest disk that is taken, bytes.
fn most_bytes(context: &Context, wanted: &Wanted<'_>) -> u64 {
    let most = context.config.image_max_bytes;
    wanted.max_disk_bytes.map_or(most, |bytes| bytes.min(most))
}

fn request(
    context: &Context,
    wanted: &mut Wanted<'_>,
    stores: Vec<StoreName>,
) -> Result<(ImportRequest, Option<String>), IntakeError> {
    let (from, most) = (wanted.from, most_bytes(context, wanted));
    let source = match (wanted.received.take(), wanted.frozen.take()) {
        (Some(received), _) => ImportSource::Upload(Box::new(received)),
        (None, Some(frozen)) => ImportSource::LocalDisk(frozen.disk),
        (None, None) => {
            source::check(context, from).map_err(IntakeError::refused)?;
            let found = source::source(context, from).map_err(IntakeError::refused)?;
            found.ok_or_else(IntakeError::nothing_received)?
        }
    };
    let reference = match &source {
        ImportSource::Registry { reference } => Some(reference.to_string()),
        _ => None,
    };
    let evidence = source::proof(context, from, wanted.record).map_err(IntakeError::refused)?;
    let allowed = context.config.images.disk_formats.iter();
    let expected = Expectations {
        allowed: allowed.filter_map(|name| format_named(name)).collect(),
        ..Expectations::up_to(most)
    };
    let claim = wanted.record.and_then(ImageRecord::disk_format);
    let claimed = claim.and_then(|claim| expected.clone().claimed_by_name(claim.as_str()));
    let request = ImportRequest {
        source,
        expected: claimed.unwrap_or(expected),
        evidence,
        trust: Arc::clone(&context.config.images.trust),
        stores,
    };
    Ok((request, reference))
}

/// The format that the configuration calls so.
fn format_named(name: &str) -> Option<Format> {
    Expectations::up_to(0).claimed_by_name(name)?.claimed
}

/// What the source has now, without fetching it.
pub(crate) async fn probe(context: &Context, from: &ImageImport) -> Result<String, IntakeError> {
    source::check(context, from).map_err(IntakeError::refused)?;
    let found = source::source(context, from).map_err(IntakeError::refused)?;
    let source = found.ok_or_else(IntakeError::nothing_received)?;
    let probing = context.store.probe(&source);
    match probing.await {
        Ok(origin) => Ok(origin_text(&origin)),
        Err(error) => Err(IntakeError::of(&error)),
    }
}

/// A text that is the same as long as the source has the same.
pub(super) fn origin_text(origin: &Origin) -> String {
    let text = match origin {
        Origin::Registry { digest } | Origin::Stored { digest } => digest.to_string(),
        Origin::Upload => "upload".to_owned(),
        Origin::Object { identity } => identity_text(identity),
    };
    if text.len() <= ORIGIN_MAX {
        return text;
    }
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("of:{hex}")
}

fn identity_text(identity: &Identity) -> String {
    let length = identity.length_bytes;
    let length = length.map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string());
    match (&identity.etag, &identity.modified) {
        (Some(etag), _) => format!("etag:{etag}"),
        (None, Some(modified)) => format!("modified:{modified};length:{length}"),
        (None, None) => format!("length:{length}"),
    }
}

pub(crate) fn import_code(error: &ImportError) -> ErrorCode {
    match error {
        ImportError::Registry(error) => pull_code(error),
        ImportError::Source(error) => source_code(error),
        ImportError::Proof { source, .. } => source_code(source),
        ImportError::Cancelled => ErrorCode::Cancelled,
        ImportError::DiskFull(_) | ImportError::Quota { .. } => ErrorCode::NoSpace,
        ImportError::Untrusted(refusal) if refusal.code() == "digest_mismatch" => ErrorCode::DigestMismatch,
        ImportError::Upload { .. } => ErrorCode::InvalidRequest,
        ImportError::NoStore(_) => ErrorCode::NotFound,
        ImportError::Store(error) => crate::failure::store_code(error),
        error if error.is_refusal() => ErrorCode::ImageRefused,
        error if error.is_transient() => ErrorCode::RegistryUnavailable,
        _ => ErrorCode::Internal,
    }
}

fn source_code(error: &SourceError) -> ErrorCode {
    match error.code() {
        "not_found" | "unauthorized" => ErrorCode::ImageUnknown,
        "not_a_file" | "bad_location" | "bad_redirect" => ErrorCode::ImageRefused,
        code if code.starts_with("denied_") => ErrorCode::ImageRefused,
        "io" => ErrorCode::Internal,
        _ => ErrorCode::RegistryUnavailable,
    }
}

pub(crate) const fn pull_code(error: &PullError) -> ErrorCode {
    match error {
        PullError::NotFound(_) | PullError::Unauthorized(_) => ErrorCode::ImageUnknown,
        PullError::Unreachable { .. }
        | PullError::Status { .. }
        | PullError::BadAnswer { .. }
        | PullError::BrokeOff { .. } => ErrorCode::RegistryUnavailable,
        PullError::Insecure { .. } => ErrorCode::InsecureRegistry,
        PullError::DigestMismatch { .. } | PullError::TooLong { .. } => ErrorCode::DigestMismatch,
        PullError::DiskFull { .. } => ErrorCode::NoSpace,
        PullError::Credentials(_) => ErrorCode::HostLacks,
        PullError::Cancelled => ErrorCode::Cancelled,
        PullError::Io { .. } => ErrorCode::Internal,
        PullError::Manifest { .. }
        | PullError::Layer { .. }
        | PullError::NoDisk { .. }
        | PullError::Ambiguous { .. }
        | PullError::Cmdline(_)
        | PullError::Denied { .. } => ErrorCode::ImageRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_that_can_be_configured_is_known() {
        let known: Vec<_> = crate::DISK_FORMATS.into_iter().filter_map(format_named).collect();
        assert_eq!(known.len(), Expectations::FORMATS.len());
        assert!(known.iter().all(|format| Expectations::FORMATS.contains(format)));
    }

    #[test]
    fn what_tells_versions_apart_is_short_and_says_what_it_is() {
        let identity = |etag: Option<&str>, modified: Option<&str>| Identity {
            length_bytes: Some(7),
            etag: etag.map(str::to_owned),
            modified: modified.map(str::to_owned),
        };
        let text = |identity| origin_text(&Origin::Object { identity });
        assert_eq!(text(identity(Some("\"a\""), Some("Sun"))), "etag:\"a\"");
        assert_eq!(text(identity(None, Some("Sun"))), "modified:Sun;length:7");
        assert_eq!(text(identity(None, None)), "length:7");
        let long = text(identity(Some(&"x".repeat(1000)), None));
        assert!(long.starts_with("of:") && long.len() < ORIGIN_MAX, "{long}");
    }
}
