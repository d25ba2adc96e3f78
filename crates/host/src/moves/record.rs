//! Moves as the registry keeps them.

use api_types::{
    ByteSize, IncomingMigrationWish, MigrationFigures, MigrationMethod, MigrationOptions, MigrationPhase, MovingDisk,
};
use control::{AutoConvergeSteps, MIGRATION_STREAMS_MAX, MigrationKey, MigrationProgress, MoveOptions, PostCopyWish};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{Problems, VmId};

use super::config::MoveDefaults;
use crate::failure::Failure;

/// First step, further steps and end of slowing a guest, percent: those of the crate `migration`.
const CONVERGE: AutoConvergeSteps = AutoConvergeSteps {
    initial_percent: 20,
    step_percent: 10,
    max_percent: 99,
};

/// A move away from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// What the ledger knows it by.
    pub key: MigrationKey,
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Name of the host it moves to.
    pub target: String,
    /// Where it is.
    pub phase: MigrationPhase,
    /// What it takes along.
    pub method: MigrationMethod,
    /// Every option.
    pub options: MigrationOptions,
    /// Where the target receives the machine.
    pub target_address: Option<String>,
    /// Whether the target has a process for it.
    pub target_vm_detected: bool,
    /// How far it is.
    pub progress: Option<MigrationFigures>,
    /// Why the machine stayed.
    pub failure: Option<Failure>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its turn came.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

/// A move to here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalRecord {
    /// What the source's ledger knows it by.
    pub key: MigrationKey,
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Where the source is asked.
    pub source_url: String,
    /// Where it is.
    pub phase: MigrationPhase,
    /// Address at which it is received, if it is another than that of the API.
    pub address: Option<String>,
    /// Port there.
    pub port: Option<u16>,
    /// Certificate of the machine process here, DER in base64.
    pub certificate: Option<String>,
    /// Why it did not come.
    pub failure: Option<Failure>,
    /// When it was announced.
    pub created_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

impl ArrivalRecord {
    /// One that was just announced.
    pub(crate) fn new(wish: &IncomingMigrationWish) -> Self {
        Self {
            key: MigrationKey {
                id: wish.id,
                token: wish.token,
            },
            vm: wish.vm.id,
            vm_name: wish.vm.spec.name.clone(),
            source_url: wish.source_url.clone(),
            phase: MigrationPhase::PreparingTarget,
            address: None,
            port: None,
            certificate: None,
            failure: None,
            created_at: Timestamp::now(),
            ended_at: None,
        }
    }
}

/// Whether `next` may follow `now`. This is the only place that says so; the drawing is in [`crate::migration`].
pub(crate) const fn may_follow(now: MigrationPhase, next: MigrationPhase) -> bool {
    use MigrationPhase::{Cancelled, Failed, Pending, PreparingTarget, Running, Scheduling, Succeeded, TargetReady};
    match now {
        Pending => matches!(next, Scheduling | Failed | Cancelled),
        Scheduling => matches!(next, PreparingTarget | Failed | Cancelled),
        PreparingTarget => matches!(next, TargetReady | Running | Succeeded | Failed | Cancelled),
        TargetReady => matches!(next, Running | Succeeded | Failed | Cancelled),
        Running => matches!(next, Succeeded | Failed | Cancelled),
        Succeeded | Failed | Cancelled => false,
    }
}

/// All options: those asked for, and the defaults for the rest. All that is wrong is told at once.
pub(crate) fn settle(asked: &MigrationOptions, defaults: &MoveDefaults) -> Result<MigrationOptions, Failure> {
    let mut problems = Problems::new();
    let streams = asked.streams.unwrap_or(defaults.streams);
    if !(1..=MIGRATION_STREAMS_MAX).contains(&streams) {
        problems.add("options.streams", format_args!("take 1 to {MIGRATION_STREAMS_MAX}"));
    }
    let progress = asked.progress_timeout_seconds.unwrap_or(defaults.progress_timeout_s);
    if progress == 0 {
        problems.add("options.progress_timeout_seconds", "take at least 1");
    }
    let downtime_ms = asked.downtime_ms.unwrap_or(defaults.downtime_ms);
    if downtime_ms == 0 {
        problems.add(
            "options.downtime_ms",
            "no guest is moved without a pause; take at least 1",
        );
    }
    let bandwidth = ByteSize::from_bytes(defaults.bandwidth_bytes_per_s);
    let all = MigrationOptions {
        bandwidth_per_migration: Some(asked.bandwidth_per_migration.unwrap_or(bandwidth)),
        completion_timeout_per_gib_seconds: Some(
            asked
                .completion_timeout_per_gib_seconds
                .unwrap_or(defaults.completion_timeout_per_gib_s),
        ),
        progress_timeout_seconds: Some(progress),
        allow_post_copy: Some(asked.allow_post_copy.unwrap_or(defaults.allow_post_copy)),
        downtime_ms: Some(downtime_ms),
        streams: Some(streams),
        auto_converge: Some(asked.auto_converge.unwrap_or(defaults.auto_converge)),
        zstd: Some(asked.zstd.unwrap_or(defaults.zstd)),
    };
    problems
        .into_result(all)
        .map_err(|problems| Failure::refused("the machine can not be moved like this", &problems))
}

/// The same as the machine process is told, with the disks that are copied.
pub(crate) fn told(options: &MigrationOptions, disks: &[MovingDisk]) -> MoveOptions {
    let mirrored = disks.iter().filter(|disk| disk.how == api_types::DiskWay::Mirrored);
    let timeout_s = options.completion_timeout_per_gib_seconds.unwrap_or_default();
    let post_copy = options.allow_post_copy.unwrap_or_default();
    let defaults = MoveOptions::default();
    MoveOptions {
        streams: options.streams.unwrap_or(defaults.streams),
        bandwidth_bytes_per_s: options.bandwidth_per_migration.map_or(0, ByteSize::bytes),
        downtime_ms: options.downtime_ms.map_or(defaults.downtime_ms, u64::from),
        completion_timeout_per_gib_ms: (timeout_s > 0).then(|| u64::from(timeout_s) * 1000),
        disk_bytes: mirrored.map(|disk| disk.size_bytes).fold(0, u64::saturating_add),
        progress_timeout_ms: patience_ms(options),
        post_copy: if post_copy {
            PostCopyWish::AfterTimeout
        } else {
            PostCopyWish::Off
        },
        auto_converge: options.auto_converge.unwrap_or_default().then_some(CONVERGE),
        zstd: options.zstd.unwrap_or_default(),
        ..defaults
    }
}

/// How long the other side may be silent, milliseconds.
pub(crate) fn patience_ms(options: &MigrationOptions) -> u64 {
    options
        .progress_timeout_seconds
        .map_or(MoveOptions::default().progress_timeout_ms, |seconds| {
            u64::from(seconds) * 1000
        })
}

/// What the machine process tells, as the API has it.
pub(crate) fn figures(told: &MigrationProgress) -> MigrationFigures {
    MigrationFigures {
        total_bytes: told.total_bytes,
        processed_bytes: told.processed_bytes,
        remaining_bytes: told.remaining_bytes,
        wire_bytes: told.wire_bytes,
        dirty_bytes_per_s: told.dirty_bytes_per_s,
        throughput_bytes_per_s: told.throughput_bytes_per_s,
        round: told.round,
        expected_downtime_ms: told.expected_downtime_ms,
        downtime_ms: told.downtime_ms,
        throttle_percent: told.throttle_percent,
        post_copy: told.post_copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_as_configured_and_all_mistakes_are_told() {
        let all = settle(&MigrationOptions::default(), &MoveDefaults::default()).unwrap();
        let told_ = told(&all, &[]);
        assert_eq!(told_, MoveOptions::default());
        let asked = MigrationOptions {
            bandwidth_per_migration: Some(ByteSize::from_mib(64)),
            completion_timeout_per_gib_seconds: Some(0),
            allow_post_copy: Some(true),
            streams: Some(4),
            ..MigrationOptions::default()
        };
        let all = settle(&asked, &MoveDefaults::default()).unwrap();
        let told_ = told(&all, &[]);
        assert_eq!((told_.streams, told_.bandwidth_bytes_per_s), (4, 64 << 20));
        assert_eq!(told_.completion_timeout_per_gib_ms, None);
        assert_eq!(told_.post_copy, PostCopyWish::AfterTimeout);
        let wrong = MigrationOptions {
            streams: Some(17),
            progress_timeout_seconds: Some(0),
            downtime_ms: Some(0),
            ..MigrationOptions::default()
        };
        let failure = settle(&wrong, &MoveDefaults::default()).unwrap_err();
        assert_eq!(failure.problems.len(), 3);
    }

    #[test]
    fn what_is_over_stays_so() {
        for now in MigrationPhase::ALL {
            let next = MigrationPhase::ALL.into_iter().filter(|next| may_follow(now, *next));
            assert_eq!(next.count() == 0, now.is_final(), "{now:?}");
        }
        assert!(!may_follow(MigrationPhase::Running, MigrationPhase::Pending));
    }
}
