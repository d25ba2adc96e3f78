//! Volumes: disks that outlive machines.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{ByteSize, DiskFormat, OperationId, VolumeId};
use utoipa::ToSchema;

/// A volume that is asked for. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeWish {
    /// 1–63 of `[a-z0-9-]`, unique among volumes.
    pub name: String,
    /// What it is filled with. Default: nothing.
    #[serde(default)]
    pub source: VolumeSource,
    /// Size the guest sees. Needed for a blank one; else at least, and by default, the size of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// How its bytes lie in its file. Default: raw for a blank one, qcow2 for a clone of an image, else as the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Whether its space is taken at once. Not for clones of images that share blocks with them.
    #[serde(default, skip_serializing_if = "Preallocation::is_off")]
    pub preallocation: Preallocation,
    /// Cluster of a qcow2 volume, a power of two from 512 to 2Mi. Default: 64Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<ByteSize>,
    /// Compress what is copied; copies into qcow2 only. What is written later is not compressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compressed: bool,
}

/// What a volume is filled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeSource {
    /// Nothing: it reads as zeroes.
    Blank {},
    /// A golden image of the store.
    Image {
        /// Its digest, or a reference it was pulled by.
        image: String,
        /// Copy all of it. Otherwise a qcow2 volume keeps only what differs from the image, which can not be deleted as long; a
        /// raw one is always a copy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copy: bool,
    },
    /// A copy of another volume, which no running machine has.
    Volume {
        /// Its name or id.
        volume: String,
    },
    /// What is sent to `/v1/volumes/{volume}/data`: a raw or qcow2 image that stands on its own.
    Upload {
        /// SHA-256 of what is sent, 64 hexadecimal digits; what is something else is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
}

impl Default for VolumeSource {
    fn default() -> Self {
        Self::Blank {}
    }
}

/// When the space of a volume is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preallocation {
    /// As it is written.
    #[default]
    Off,
    /// The tables of a qcow2 volume at once, its data as it is written.
    Metadata,
    /// All of it at once, by reserving.
    Falloc,
    /// All of it at once, by writing zeroes.
    Full,
}

impl Preallocation {
    /// Nothing is taken ahead.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }
}

/// States of a volume.
///
/// ```text
///   creating ──▶ ready ──▶ deleting ──▶ (gone)
///       │                     ▲
///       └──▶ failed ──────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It is being filled, or waits to be sent; a restart of the daemon goes on with it.
    Creating,
    /// It can be attached.
    Ready,
    /// It was not filled; nothing is stored of it. Only deleting is left.
    Failed,
    /// It is being removed.
    Deleting,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Assigned at creation, never reused.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// How its bytes lie in its file; missing until what is uploaded without a format was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Size the guest sees, bytes; missing until what is uploaded without a size was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Space it takes on the host, bytes; without the image it shares blocks with.
    pub usage_bytes: u64,
    /// What it was filled with.
    pub source: VolumeSource,
    /// Digest of the image it shares blocks with, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// When its space is taken.
    pub preallocation: Preallocation,
    /// Its state.
    pub state: VolumeState,
    /// One word for programs: why it is in this state, such as `AwaitingUpload`, `Copying`, `NoSpace`, `Cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is being done to it, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// How much of it was sent, while it is uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<VolumeUpload>,
    /// Its files, where there are several, newest first: each holds what changed since the one after it was left as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<VolumeLayer>,
    /// Machines that have it as a disk.
    pub attached_to: Vec<VolumeAttachment>,
    /// What the last check found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<VolumeCheck>,
    /// `Bound`, `Running` and `Ready`, in this order.
    pub conditions: Vec<VolumeCondition>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Grows with each change of the record; also the entity tag.
    pub revision: u64,
}

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeLayer {
    /// Its name in the directory of volumes.
    pub file: String,
    /// How its bytes lie there.
    pub format: DiskFormat,
}

/// How much of an upload has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeUpload {
    /// Bytes that are stored: where a sender goes on.
    pub received_bytes: u64,
}

/// A machine that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAttachment {
    /// Name of the machine.
    pub vm: String,
    /// Name of the disk within it.
    pub disk: String,
    /// Whether it may only read.
    pub read_only: bool,
}

/// One aspect of how a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCondition {
    /// `Bound`: its file is there. `Running`: something is being done to it. `Ready`: it can be attached.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is so.
    pub status: bool,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people; may be empty.
    pub message: String,
    /// Since when it is as it is, at most.
    #[schema(value_type = String, format = DateTime)]
    pub last_transition_at: Timestamp,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCheck {
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What was to be repaired, if anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<VolumeRepair>,
    /// Faults that endanger data and are left.
    pub errors: u64,
    /// Clusters that are taken by nothing and are left: only space is lost.
    pub leaks: u64,
    /// Faults that were repaired.
    pub errors_repaired: u64,
    /// Clusters that were given back.
    pub leaks_repaired: u64,
    /// The first faults in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// What a check may repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeRepair {
    /// Give back clusters that are taken by nothing.
    Leaks,
    /// Everything; what can not be made sense of is lost.
    All,
}

/// All volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// Ordered by name.
    pub items: Vec<Volume>,
}

/// What became of a request that takes time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAccepted {
    /// The volume now.
    pub volume: Volume,
    /// Follow it under `/v1/operations/{id}`; missing where nothing is under way, as before an upload is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// How large a volume shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// The new size; volumes only grow.
    pub size: ByteSize,
}

/// How a volume is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCheckRequest {
    /// What to repair. Default: nothing, only look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<VolumeRepair>,
}

/// What a copy of a volume is to be, whose size is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMeasureRequest {
    /// Its format.
    pub format: DiskFormat,
    /// When its space is taken.
    #[serde(default, skip_serializing_if = "Preallocation::is_off")]
    pub preallocation: Preallocation,
    /// Cluster of a qcow2 copy, a power of two from 512 to 2Mi. Default: 64Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<ByteSize>,
}

/// How large the file of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMeasure {
    /// With what the volume holds now, bytes. Data is not looked at for zeroes: it may become less.
    pub required_bytes: u64,
    /// Once all of its disk has been written, bytes.
    pub fully_allocated_bytes: u64,
}

/// A copy of a volume in another form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeConvert {
    /// Name of the new volume; the old one stays.
    pub name: String,
    /// Its format.
    pub format: DiskFormat,
    /// When its space is taken.
    #[serde(default, skip_serializing_if = "Preallocation::is_off")]
    pub preallocation: Preallocation,
    /// Cluster of a qcow2 volume, a power of two from 512 to 2Mi. Default: 64Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<ByteSize>,
    /// Compress what is copied; copies into qcow2 only. What is written later is not compressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compressed: bool,
}
