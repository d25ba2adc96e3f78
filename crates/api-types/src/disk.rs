//! Disks of machines that run.

use serde::{Deserialize, Serialize};
use spec::{DiskFormat, DiskLimits};
use utoipa::ToSchema;

/// A disk of a machine that runs, and what it did since the guest was started or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDisk {
    /// Its name in the machine.
    pub name: String,
    /// Size the guest sees, bytes.
    pub size_bytes: u64,
    /// Its images, the one that is written first.
    pub layers: Vec<VmDiskLayer>,
    /// The rates it is kept to.
    pub limits: DiskLimits,
    /// Reads.
    pub reads: DiskRequests,
    /// Writes.
    pub writes: DiskRequests,
    /// Flushes.
    pub flushes: DiskRequests,
    /// Discards and write-zeroes.
    pub trims: DiskRequests,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// An image of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDiskLayer {
    /// Its path.
    pub path: String,
    /// How its bytes lie there.
    pub format: DiskFormat,
}

/// Requests of one kind: how many, and how long they took from the guest's queue to the guest's interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskRequests {
    /// How many.
    pub count: u64,
    /// All of their time, nanoseconds.
    pub total_ns: u64,
    /// Half took no longer, microseconds.
    pub p50_us: u64,
    /// Of 100, 99 took no longer.
    pub p99_us: u64,
    /// Of 1000, 999 took no longer.
    pub p999_us: u64,
}

/// The disks of a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDiskList {
    /// In the order of the machine.
    pub items: Vec<VmDisk>,
}

/// A copy of a disk of a running machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMirror {
    /// Name of the new volume the disk is copied into, as it is when the copy is whole. Without it the disk is copied into a new
    /// file of its own volume, goes on there, and the files before are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Format of the copy. Default: that of what is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
}
