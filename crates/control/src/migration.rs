//! What is said about a machine that moves to another process.
//!
//! ```text
//!   source                                            target
//!     Depart ──▶ Done                                   Arrive ──▶ Done, state is Arriving
//!     Progress …                                        Progress is the source's matter
//!     Decide ──▶ DepartDecided(departed)                InDoubt ──▶ ArriveDecided(departed)
//!     Departed, state is Departed, the process ends     Arrived, state is Running
//!     or Stayed, and all is as it was                   or ArrivalFailed, and the process ends
//! ```
//!
//! Who decides what, and why exactly one machine runs, is in `docs/adr/0012-the-source-decides-where-a-machine-is.md`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spec::{MigrationId, Name};

/// Most streams for pages; one more carries everything else.
pub const MIGRATION_STREAMS_MAX: u8 = 16;

/// One attempt to move one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationKey {
    /// The migration.
    pub id: MigrationId,
    /// Random, never used twice: what a departed machine's record is kept under, and what a stranger does not know.
    pub token: u64,
}

/// Bytes, base64 on the wire (RFC 4648 §4). What they are is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What one side of a migration proves itself with, and knows the other side by. Made for one migration, of no use after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkCredentials {
    /// Its own certificate (X.509, DER).
    pub certificate_der: Blob,
    /// The private key of it (PKCS #8, DER).
    pub key_der: Blob,
    /// The only certificate the other side may show, byte for byte.
    pub peer_certificate_der: Blob,
}

/// Move away.
///
/// Connected sockets travel with it: one for control, then [`MoveOptions::streams`] for pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepartVm {
    /// Which attempt.
    pub key: MigrationKey,
    /// How.
    #[serde(default)]
    pub options: MoveOptions,
    /// Over TLS with these; plain where there are none.
    pub credentials: Option<LinkCredentials>,
    /// What becomes of each disk. A disk that is not named is shared.
    #[serde(default)]
    pub disks: Vec<DepartDisk>,
}

/// A disk of a machine that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepartDisk {
    /// Its name.
    pub name: Name,
    /// How it gets there.
    pub how: DiskMove,
}

/// How a disk gets to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskMove {
    /// Both sides see the same storage: its files are let go here before they are used there.
    Shared,
    /// It is copied while the machine runs.
    Mirrored,
}

/// How a machine is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MoveOptions {
    /// Streams for pages, 1 to [`MIGRATION_STREAMS_MAX`].
    pub streams: u8,
    /// Bytes per second over all of them; 0 is no limit.
    pub bandwidth_bytes_per_s: u64,
    /// Longest pause that is aimed at, milliseconds.
    pub downtime_ms: u64,
    /// For each GiB of memory and of `disk_bytes`, milliseconds; without one, it may take for ever.
    pub completion_timeout_per_gib_ms: Option<u64>,
    /// Bytes besides memory that the deadline is counted from: those of mirrored disks.
    pub disk_bytes: u64,
    /// Given up after this long without progress, milliseconds.
    pub progress_timeout_ms: u64,
    /// What happens when there is no more time.
    pub on_timeout: OnMoveTimeout,
    /// Whether and when the machine is started before all of its memory is there.
    pub post_copy: PostCopyWish,
    /// Whether the guest is slowed until it dirties less than is sent.
    pub auto_converge: Option<AutoConvergeSteps>,
    /// Compress pages.
    pub zstd: bool,
    /// Bytes of pages that are kept to send only what changed in them; 0 is none.
    pub delta_cache_bytes: u64,
    /// Longest wait for the target's word that it has everything, while the guest stands still, milliseconds.
    pub handover_timeout_ms: u64,
}

impl Default for MoveOptions {
    /// As `migration::Options`.
    fn default() -> Self {
        Self {
            streams: 1,
            bandwidth_bytes_per_s: 0,
            downtime_ms: 300,
            completion_timeout_per_gib_ms: Some(800_000),
            disk_bytes: 0,
            progress_timeout_ms: 150_000,
            on_timeout: OnMoveTimeout::Fail,
            post_copy: PostCopyWish::Off,
            auto_converge: None,
            zstd: false,
            delta_cache_bytes: 0,
            handover_timeout_ms: 10_000,
        }
    }
}

/// What happens when the completion timeout has passed and post-copy is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMoveTimeout {
    /// The machine stays.
    Fail,
    /// The machine is paused for as long as the rest takes.
    Finish,
}

/// When the machine is started at the target before all of its memory is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "when", rename_all = "snake_case")]
pub enum PostCopyWish {
    /// Never.
    Off,
    /// When the completion timeout has passed, instead of giving up.
    AfterTimeout,
    /// After so many rounds over memory: 0 moves nothing before the start.
    AfterRounds {
        /// How many.
        rounds: u32,
    },
}

/// How the guest's processors are slowed, percent of their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoConvergeSteps {
    /// First step.
    pub initial_percent: u8,
    /// Each further step.
    pub step_percent: u8,
    /// Never more than this; at most 99.
    pub max_percent: u8,
}

/// How far a migration is, as the source sees it. `migration::Phase` has the drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Both sides get to know each other.
    PreparingTarget,
    /// Both are ready.
    TargetReady,
    /// Memory moves.
    Running,
    /// The machine runs at the target, or will.
    Succeeded,
    /// The machine stayed.
    Failed,
    /// The machine stayed because somebody said so.
    Cancelled,
}

/// Figures of a running migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationProgress {
    /// How far it is.
    pub phase: MigrationPhase,
    /// Memory, bytes.
    pub total_bytes: u64,
    /// Memory that was dealt with, bytes: what is sent again counts again.
    pub processed_bytes: u64,
    /// Memory that is known to be still to send, bytes.
    pub remaining_bytes: u64,
    /// Bytes that went over the streams.
    pub wire_bytes: u64,
    /// Memory that the guest dirties, bytes per second, in the last round.
    pub dirty_bytes_per_s: u64,
    /// Memory that is dealt with, bytes per second, in the last round.
    pub throughput_bytes_per_s: u64,
    /// Which round over memory this is, from 1.
    pub round: u32,
    /// The pause if it began now, milliseconds.
    pub expected_downtime_ms: u64,
    /// The pause as it was, milliseconds, once that is known.
    pub downtime_ms: Option<u64>,
    /// How much the guest is slowed, percent.
    pub throttle_percent: u8,
    /// The machine was started before all of its memory was there.
    pub post_copy: bool,
}

/// What a machine process tells of a migration. What was told last is in each [`crate::Hello`] too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub enum MigrationNews {
    /// Source: figures; some times a second, and at each change of phase.
    Progress(MigrationProgress),
    /// Source: the target has everything. The departure is to be recorded, and [`crate::VmRequest::DepartDecided`] says what is
    /// on record; the machine stands still until then.
    Decide {
        /// Which attempt.
        key: MigrationKey,
    },
    /// Source: the streams broke after the machine had departed, and the target misses memory. New ones are wanted, by
    /// [`crate::VmRequest::DepartLinks`].
    LinksWanted {
        /// Sockets, the one for control among them.
        count: u32,
        /// Why they broke.
        reason: String,
    },
    /// Source: the machine lives elsewhere, and will never run here again. The process ends when the target needs nothing of it
    /// any more.
    Departed,
    /// Source: it came to nothing, and all is as it was.
    Stayed {
        /// Why.
        reason: String,
        /// Somebody wanted it so.
        cancelled: bool,
    },
    /// Target: all is here, and it is not known whether the source has given the machine away. The source's record is to be
    /// asked, and [`crate::VmRequest::ArriveDecided`] says the answer; the machine stands still until then.
    InDoubt {
        /// Which attempt.
        key: MigrationKey,
    },
    /// Target: the machine runs here.
    Arrived {
        /// From the pause at the source until vCPUs run here, microseconds; of the part of it that this side can see.
        downtime_us: u64,
    },
    /// Target: it runs here and has all of its memory; the source is not needed any more.
    Complete,
    /// Target: the machine did not come. The process ends, and leaves nothing behind but its report.
    ArrivalFailed {
        /// Why.
        reason: String,
    },
}
