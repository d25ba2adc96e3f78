//! Moves of running machines between hosts.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{ByteSize, MigrationId, VmId, VmSpec};
use utoipa::ToSchema;

use crate::problem::ProblemBody;

/// A machine that is to be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationWish {
    /// Name or id of the machine, which runs or is paused.
    pub vm: String,
    /// Where to: the name of a host in `[hosts]` of the daemon's configuration.
    pub target: String,
    /// How, where it differs from what is configured.
    #[serde(default, skip_serializing_if = "MigrationOptions::is_empty")]
    pub options: MigrationOptions,
}

/// How a machine is moved. What is absent is as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationOptions {
    /// Most bytes per second; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_per_migration: Option<ByteSize>,
    /// Seconds for each GiB of memory and of disks that move along, after which the move is given up or, with `allow_post_copy`, the
    /// machine is started at the target; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_timeout_per_gib_seconds: Option<u32>,
    /// Seconds without progress after which the move is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_timeout_seconds: Option<u32>,
    /// Whether the machine may be started at the target before all its memory is there. From then on, the loss of either host
    /// loses the machine, a broken link has it stand still, and the move can not be cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_post_copy: Option<bool>,
    /// Longest pause of the guest that is aimed at, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u32>,
    /// Streams that memory is sent over, 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u8>,
    /// Whether the guest is slowed when it writes faster than is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_converge: Option<bool>,
    /// Whether memory is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd: Option<bool>,
}

impl MigrationOptions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is changed of a move that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationPatch {
    /// Most bytes per second from now on; 0 is no limit.
    pub bandwidth_per_migration: ByteSize,
}

/// Where a move is. `Succeeded`, `Failed` and `Cancelled` are final; with the latter two, the machine stayed where it was.
///
/// ```text
///   Pending ──▶ Scheduling ──▶ PreparingTarget ──▶ TargetReady ──▶ Running ──▶ Succeeded
///      └────────────┴────────────────┴──────────────────┴─────────────┴──▶ Failed | Cancelled
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum MigrationPhase {
    /// Waits for its turn.
    Pending,
    /// Both hosts look whether the machine fits.
    Scheduling,
    /// The target makes room, and both machine processes get to know each other.
    PreparingTarget,
    /// Both are ready.
    TargetReady,
    /// Memory moves.
    Running,
    /// The machine lives at the target.
    Succeeded,
    /// The machine stayed; see `error`.
    Failed,
    /// The machine stayed, on request.
    Cancelled,
}

impl MigrationPhase {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Scheduling,
        Self::PreparingTarget,
        Self::TargetReady,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What a move takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MigrationMethod {
    /// Memory; both hosts see the disks.
    LiveMigration,
    /// Memory and disks.
    BlockMigration,
}

/// Figures of a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationFigures {
    /// Memory of the machine, bytes.
    pub total_bytes: u64,
    /// Memory that was dealt with, bytes: what is sent again counts again.
    pub processed_bytes: u64,
    /// Memory that is known to be still to send, bytes.
    pub remaining_bytes: u64,
    /// Bytes that went over the network.
    pub wire_bytes: u64,
    /// Memory that the guest writes, bytes per second.
    pub dirty_bytes_per_s: u64,
    /// Memory that is dealt with, bytes per second.
    pub throughput_bytes_per_s: u64,
    /// Which round over memory this is, from 1.
    pub round: u32,
    /// The pause of the guest if it began now, milliseconds.
    pub expected_downtime_ms: u64,
    /// The pause as it was, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// How much the guest is slowed, percent.
    pub throttle_percent: u8,
    /// Whether the machine was started at the target before all its memory was there.
    pub post_copy: bool,
}

/// A move of a machine away from this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// Name of the machine.
    pub vm: String,
    /// Id of the machine, the same on both hosts.
    pub vm_id: VmId,
    /// Where to.
    pub target: String,
    /// Where it is.
    pub phase: MigrationPhase,
    /// What it takes along.
    pub method: MigrationMethod,
    /// Whether it is over, in whatever way.
    pub completed: bool,
    /// How it is moved: every option, asked for or configured.
    pub options: MigrationOptions,
    /// Where the target receives it, `ip:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_address: Option<String>,
    /// Whether the target has the machine's process.
    pub target_vm_detected: bool,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<MigrationFigures>,
    /// Why the machine stayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProblemBody>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its turn came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
}

/// Moves that are remembered: the last five of each machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationList {
    /// Newest first.
    pub items: Vec<Migration>,
}

/// A machine that another host wants to move here. Only daemons ask for this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IncomingMigrationWish {
    /// Of the move, at the source.
    pub id: MigrationId,
    /// What the source's record of the decision is kept under.
    pub token: u64,
    /// Where the source is asked what it decided.
    pub source_url: String,
    /// The machine.
    pub vm: MovingVm,
    /// What becomes of each of its disks.
    pub disks: Vec<MovingDisk>,
    /// What the source's processors can do.
    pub cpu: CpuFacts,
    /// Version of the source's daemon.
    pub version: String,
    /// The source's clock.
    #[schema(value_type = String, format = DateTime)]
    pub clock: Timestamp,
    /// Certificate of the source's machine process for this one move (X.509, DER, base64); without one, memory comes as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Longest silence of the source before the target gives up, milliseconds.
    pub patience_ms: u64,
}

/// A machine as it leaves a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MovingVm {
    /// Its id, which it keeps.
    pub id: VmId,
    /// What it is made of.
    pub spec: VmSpec,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A disk of a machine that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MovingDisk {
    /// Its name.
    pub name: String,
    /// How it gets there.
    pub how: DiskWay,
    /// Its size, bytes.
    pub size_bytes: u64,
    /// Number of its file on its file system. By this and `born_ns` the target knows whether it sees the same file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// When that file was made, nanoseconds since 1970: file systems of two hosts have the same numbers, but not made at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<u64>,
}

/// How a disk gets to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskWay {
    /// Both hosts see it.
    Shared,
    /// It is copied while the machine runs.
    Mirrored,
}

/// What a host's processors can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuFacts {
    /// Who made them, as they say themselves.
    pub vendor: String,
    /// What they can do, as Linux calls it.
    pub features: Vec<String>,
}

/// A machine that comes, or came, from another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncomingMigration {
    /// The same as at the source.
    pub id: MigrationId,
    /// Name of the machine.
    pub vm: String,
    /// Its id.
    pub vm_id: VmId,
    /// Where it comes from.
    pub source_url: String,
    /// Where it is; `Succeeded` when it lives here.
    pub phase: MigrationPhase,
    /// The address it is received at; absent for that of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The port there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Certificate of the machine process here for this one move (X.509, DER, base64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Why it did not come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProblemBody>,
    /// When it was announced.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
}

/// Machines that come, or came, from other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncomingMigrationList {
    /// Newest first.
    pub items: Vec<IncomingMigration>,
}

/// Asks the source of a move what it decided. Only daemons ask for this: asking decides that the machine stays, unless it has departed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// As the target was told.
    pub token: u64,
}

/// What the source of a move decided, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationDecision {
    /// The machine has been given away; else it stays at the source.
    pub departed: bool,
}
