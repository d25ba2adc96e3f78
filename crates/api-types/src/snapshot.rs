//! Snapshots: machines that were saved at one instant, to go on from there.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{NetworkWish, OperationId, SnapshotId, VmId, VmSpec};
use utoipa::ToSchema;

use crate::vm::Vm;

/// A machine as it was at one instant: memory, devices and disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Assigned at creation, never reused.
    pub id: SnapshotId,
    /// 1–63 of `[a-z0-9-]`, unique among snapshots.
    pub name: String,
    /// The machine that was saved, by the name it had.
    pub vm: String,
    /// Its id; the machine may be gone.
    pub vm_id: VmId,
    /// What the machine was made of.
    pub spec: VmSpec,
    /// Digest of the image that its disk needs still, `sha256:…`. It is not deleted while the snapshot is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Whether it can be restored.
    pub state: SnapshotState,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// What its files take on the host, bytes: memory without its zeroes, devices, and the disk as far as no image has it. Machines
    /// that have the same disk, and other snapshots of it, share that part.
    pub usage_bytes: u64,
    /// What makes it, while that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Grows with each change of the record; also the entity tag.
    pub revision: u64,
}

/// States of a snapshot. One that could not be made is not kept: its operation tells why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// The machine is being saved.
    Creating,
    /// It can be restored, any number of times.
    Ready,
}

/// All snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// Ordered by name.
    pub items: Vec<Snapshot>,
}

/// A snapshot that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotWish {
    /// The machine, by name or id. It runs or is paused, stands still while it is saved, and is afterwards as it was before.
    pub vm: String,
    /// Name of the snapshot. Default: the machine's, the date and the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A snapshot that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotAccepted {
    /// The snapshot as it is now.
    pub snapshot: Snapshot,
    /// What makes it.
    pub operation: OperationId,
}

/// A machine that is to go on from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRestore {
    /// Name of the new machine.
    pub name: String,
    /// Its interfaces, as many as the saved machine had, each with as many pairs of queues. Needed if it had any: no two machines
    /// are on one tap. A guest that runs goes on with the address that it read when it found the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkWish>>,
    /// Read all memory, and compare it with its checksums, before the machine goes on. Otherwise it is mapped: the machine goes on
    /// at once, and pages come when they are touched.
    #[serde(default)]
    pub eager: bool,
    /// Leave the machine stopped; its first start goes on from the snapshot.
    #[serde(default)]
    pub stopped: bool,
}

/// A machine that was made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotRestored {
    /// The machine as it is now.
    pub vm: Vm,
    /// Its start, if it was not to be left stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}
