//! Machines.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{DiskFormat, VmId, VmSpec};
use utoipa::ToSchema;

/// A machine: what was asked for, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Assigned at creation, never reused.
    pub id: VmId,
    /// What was asked for.
    pub spec: VmSpec,
    /// Digest of the image the root disk was cloned from, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// How it is.
    pub status: VmStatus,
    /// What can be done with it, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<VmCondition>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Grows with each change of the record; also the entity tag.
    pub revision: u64,
}

/// Whether something can be done with a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmCondition {
    /// What: `LiveMigratable`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it can.
    pub status: bool,
    /// One word for programs: why not, as `NotRunning`, `RootDiskNotShared`, `VolumeNotShared` or `NoHosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Phases of a machine.
///
/// ```text
///   Stopped ──▶ Starting ──▶ Running ◀──▶ Paused
///      ▲  ▲         │          │  │         │
///      │  └─ Stopping ◀────────┘  │         │
///      │                          ▼         ▼
///      └────── start ──────── Failed ◀──────┘
/// ```
///
/// `Arriving` becomes `Running` or goes away; `Running` becomes `Departed` and goes away: see `migrations`.
///
/// `Stopping` can be entered from `Paused` by force; a guest that powers itself off goes to `Stopped` directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmPhase {
    /// No process; the disk is kept.
    Stopped,
    /// The process is being set up.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still, memory is kept.
    Paused,
    /// Asked to shut down, or being ended.
    Stopping,
    /// The process ended in a way nobody asked for; see `reason` and `message`. Can be started again.
    Failed,
    /// It is on its way here from another host.
    Arriving,
    /// It lives on another host by now; what is left of it here never runs again, and goes soon.
    Departed,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// Its phase.
    pub phase: VmPhase,
    /// One word for programs: why it is in this phase, such as `GuestPowerOff`, `Requested`, `TripleFault`, `Killed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Process of the machine, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// Microseconds from the request to start until the first guest instruction, at the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_to_guest_us: Option<u64>,
    /// How often the guest was reset since then.
    #[serde(default)]
    pub resets: u32,
    /// How the root disk was cloned: `overlay`, `reflink` or `copy`; the same as in `root_disk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_method: Option<String>,
    /// What the root disk is. Absent without an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDisk>,
}

/// The disk that was made from a machine's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RootDisk {
    /// How it was made.
    pub method: CloneMethod,
    /// Why in this way, for people.
    pub reason: String,
    /// How its bytes lie in its file.
    pub format: DiskFormat,
    /// Whether the machine needs nothing of the image any more: it was flattened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stands_alone: bool,
    /// The store of images that has what it was made from. Absent where that is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// How a disk is made from an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneMethod {
    /// Only what differs from the image is kept in it: takes as good as no time and no space.
    Overlay,
    /// A disk of its own, whose blocks the file system shares with the image until one is written.
    Reflink,
    /// A disk of its own, copied without its holes.
    Copy,
}

impl CloneMethod {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

/// All machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// Ordered by name.
    pub items: Vec<Vm>,
}

/// How to stop a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// End the machine at once, as if its power was cut, rather than press the power button.
    #[serde(default)]
    pub force: bool,
    /// Seconds the guest has to shut down after the button; then the operation fails and the guest goes on. Default 180.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// The daemon is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`; anything else comes as a problem.
    pub status: String,
    /// Version of the daemon.
    pub version: String,
}
