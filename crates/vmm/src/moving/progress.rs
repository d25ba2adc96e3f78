//! Tells of a departure while it goes on.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::{MigrationNews, MigrationPhase, MigrationProgress};
use migration::{Handle, Phase};
use sandbox::{NewThread, ThreadKind};

use super::order::MoveOrder;

/// How often the phase is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Figures are told no more often than this.
const TELL: Duration = Duration::from_millis(250);
/// Stack of the thread, bytes.
const STACK_BYTES: usize = 128 << 10;

/// Tells until it is dropped, and a last time then.
pub(super) struct Teller {
    /// Hung up to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Phases before the first of these are not the source's.
const fn phase(phase: Phase) -> MigrationPhase {
    match phase {
        Phase::Pending | Phase::Scheduling | Phase::PreparingTarget => MigrationPhase::PreparingTarget,
        Phase::TargetReady => MigrationPhase::TargetReady,
        Phase::Running => MigrationPhase::Running,
        Phase::Succeeded => MigrationPhase::Succeeded,
        Phase::Failed => MigrationPhase::Failed,
        Phase::Cancelled => MigrationPhase::Cancelled,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn figures(handle: &Handle) -> MigrationProgress {
    let told = handle.progress();
    MigrationProgress {
        phase: phase(handle.phase()),
        total_bytes: told.total_bytes,
        processed_bytes: told.processed_bytes,
        remaining_bytes: told.remaining_bytes,
        wire_bytes: told.wire_bytes,
        dirty_bytes_per_s: told.dirty_bytes_per_s,
        throughput_bytes_per_s: told.throughput_bytes_per_s,
        round: told.round,
        expected_downtime_ms: milliseconds(told.expected_downtime),
        downtime_ms: told.downtime.map(milliseconds),
        throttle_percent: told.throttle_percent,
        post_copy: told.post_copy,
    }
}

impl Teller {
    /// Without a thread nothing is told.
    pub(super) fn start(handle: Handle, tell: impl Fn(MoveOrder) + Send + 'static) -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let thread = NewThread::new(ThreadKind::Watch, "move-progress")
            .stack_bytes(STACK_BYTES)
            .spawn(move || {
                let mut told: Option<(MigrationProgress, Instant)> = None;
                let mut over = false;
                loop {
                    let now = figures(&handle);
                    let due = match &told {
                        None => true,
                        Some((before, at)) => {
                            before.phase != now.phase || (*before != now && (over || at.elapsed() >= TELL))
                        }
                    };
                    if due {
                        tell(MoveOrder::Tell(MigrationNews::Progress(now.clone())));
                        told = Some((now, Instant::now()));
                    }
                    if over {
                        return;
                    }
                    over = ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout);
                }
            })
            .inspect_err(|error| tracing::warn!(%error, "no thread to tell of the move"));
        Self {
            end: Some(end),
            thread: thread.ok(),
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, if it had one, was reported where it happened.
            let _ = thread.join();
        }
    }
}
