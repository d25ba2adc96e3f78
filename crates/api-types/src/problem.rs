//! Errors as they leave the API.

use serde::{Deserialize, Serialize};
use spec::Problem;
use utoipa::ToSchema;

/// Media type of every error body (RFC 9457).
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// An error body (RFC 9457), with a stable `code` and every offending field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// Always `about:blank`: `code` says what a type URI would.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// Short and the same for every problem of this code.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// For programs; a code never changes its meaning.
    pub code: ErrorCode,
    /// For people: what happened, to what, and what to do.
    pub detail: String,
    /// Fields of the request that are wrong, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Problem>,
}

/// Stable codes of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is no JSON, or has fields that do not exist or do not fit.
    InvalidRequest,
    /// The body is understood but its content is refused; see `errors`.
    InvalidSpec,
    /// No such path.
    UnknownPath,
    /// No such thing.
    NotFound,
    /// The name is taken.
    NameTaken,
    /// Not in the state it is in now.
    WrongState,
    /// The store has the image already.
    StoreHasImage,
    /// The image is being copied already.
    CopyInProgress,
    /// Not for whoever asks.
    Forbidden,
    /// Used by something else; `detail` names the users.
    InUse,
    /// The `Idempotency-Key` was used for another request.
    KeyReused,
    /// `If-Match` names another revision.
    RevisionMismatch,
    /// The registry refused, is down, or broke off. A repeated pull goes on where it ended.
    RegistryUnavailable,
    /// The registry has no such image, or not for this architecture.
    ImageUnknown,
    /// What came is not what its digest or size promised.
    DigestMismatch,
    /// The image holds no disk, more than one, or one that is refused.
    ImageRefused,
    /// The image is protected against deletion.
    ImageProtected,
    /// A disk names another file, as its backing file or for its data: what is uploaded must stand on its own.
    DiskNotStandalone,
    /// A disk is damaged, encrypted, or of a format or with a feature that is not read.
    DiskRefused,
    /// What was uploaded is not what its checksum promised.
    ChecksumMismatch,
    /// A piece of an upload does not begin where the last one ended; `detail` has where to go on.
    UploadOffset,
    /// The registry is reached only over plain HTTP and is not on the list of those allowed to be.
    InsecureRegistry,
    /// A kernel or initrd can not be booted.
    BadKernel,
    /// The file system of a store of images is not mounted, does not answer, or can only be read. It is used again when it is back.
    StoreUnavailable,
    /// The host lacks memory, space or a capability.
    HostLacks,
    /// The disk is full.
    NoSpace,
    /// Nobody answered in time.
    Timeout,
    /// Cancelled on request.
    Cancelled,
    /// The machine process could not be started or broke off.
    MachineFailed,
    /// A defect of the daemon; the log has more.
    Internal,
}
