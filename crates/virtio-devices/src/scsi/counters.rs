//! What a SCSI host did so far, beside what its disks did.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one host, over all its queues and for as long as it lives.
#[derive(Debug, Default)]
pub struct ScsiCounters {
    pub(super) commands: AtomicU64,
    pub(super) checks: AtomicU64,
    pub(super) strays: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) managements: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) events_missed: AtomicU64,
}

/// [`ScsiCounters`] at one moment: plain numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScsiSnapshot {
    /// Commands answered.
    pub commands: u64,
    /// Commands answered with CHECK CONDITION: some are part of every start.
    pub checks: u64,
    /// Commands and task management functions for nobody: while it scans, a driver sends many.
    pub strays: u64,
    /// Commands that ask for more data than their buffers hold, or for both directions: a driver's mistake.
    pub overruns: u64,
    /// Commands aborted by task management.
    pub aborts: u64,
    /// Task management functions answered.
    pub managements: u64,
    /// Events told.
    pub events: u64,
    /// Events for which the driver had no room in time; it is told that there were some.
    pub events_missed: u64,
}

impl ScsiCounters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers as they are now.
    pub fn snapshot(&self) -> ScsiSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ScsiSnapshot {
            commands: load(&self.commands),
            checks: load(&self.checks),
            strays: load(&self.strays),
            overruns: load(&self.overruns),
            aborts: load(&self.aborts),
            managements: load(&self.managements),
            events: load(&self.events),
            events_missed: load(&self.events_missed),
        }
    }
}
