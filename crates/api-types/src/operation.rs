//! Operations: changes that take time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::OperationId;
use utoipa::ToSchema;

use crate::problem::ProblemBody;

/// A change that takes time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What is being done.
    pub kind: OperationKind,
    /// To what: the name or reference in the request.
    pub subject: String,
    /// Where it is.
    pub phase: OperationPhase,
    /// How far it is, while that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What came out, when it succeeded: for a pull or an import the image's digest, for a boot source the
    /// id of its current image, for a volume or a snapshot its name, for a check what was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// What went wrong, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProblemBody>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// An image is pulled.
    ImagePull,
    /// Data is imported into an image record.
    ImageImport,
    /// An image is copied to further stores.
    ImageCopy,
    /// An image's bytes are compared with their digests.
    ImageVerify,
    /// An image is published to a registry.
    ImagePush,
    /// A boot source is polled, and what is new is imported.
    BootSourceSync,
    /// A machine is started.
    VmStart,
    /// A machine is stopped.
    VmStop,
    /// A machine's root disk is made to stand alone.
    VmFlatten,
    /// A machine is saved into a snapshot.
    SnapshotCreate,
    /// A volume is filled.
    VolumeCreate,
    /// A volume that was uploaded is looked at and put in place.
    VolumeUpload,
    /// A volume grows.
    VolumeResize,
    /// A volume is checked, perhaps repaired.
    VolumeCheck,
    /// A running machine goes on in an overlay of a volume.
    VolumeSnapshot,
    /// A running machine copies into the top file of a volume what is below it.
    VolumeStream,
    /// A running machine copies a volume into another one, or into another file of its own.
    VolumeMirror,
    /// A volume is made to stand alone.
    VolumeRebase,
    /// The newest file of a volume is written into the one below it.
    VolumeCommit,
}

/// Where an operation is. `Succeeded`, `Failed` and `Cancelled` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum OperationPhase {
    /// Accepted, not begun.
    Pending,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Not done; see `error`.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl OperationPhase {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The step it is at, as `download` or `convert`.
    pub step: String,
    /// Bytes of this step that are done.
    pub done_bytes: u64,
    /// Bytes of this step in all, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// All operations that are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// Newest first.
    pub items: Vec<Operation>,
}
