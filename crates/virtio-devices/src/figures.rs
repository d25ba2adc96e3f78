//! What a disk did for a guest, counted and timed: for metrics, read from outside at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use telemetry::{Histogram, HistogramSnapshot};

/// Kinds of operations told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
}

#[derive(Debug, Default)]
struct Tally {
    latency: Histogram,
    bytes: AtomicU64,
}

/// Counters of one disk, over all its queues and for as long as its device lives. Shared by all workers, without locks.
#[derive(Debug, Default)]
pub struct DiskFigures {
    reads: Tally,
    writes: Tally,
    flushes: Tally,
    trims: Tally,
    errors: AtomicU64,
}

/// One kind of operation in a [`DiskSnapshot`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationSnapshot {
    /// How long each took, from when it was found in the queue to when it was answered; whether it succeeded or not.
    pub latency: HistogramSnapshot,
    /// Bytes moved, discarded or zeroed by those that succeeded.
    pub bytes: u64,
}

/// What a disk did so far: plain numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskSnapshot {
    /// Reads by the guest; for SCSI also verifications.
    pub reads: OperationSnapshot,
    /// Writes by the guest; for SCSI also WRITE SAME with data.
    pub writes: OperationSnapshot,
    /// Flushes the guest asked for. Those that are part of a write that must be durable count as the write.
    pub flushes: OperationSnapshot,
    /// Discards and write-zeroes.
    pub trims: OperationSnapshot,
    /// Requests answered with an error, whoever's fault it was.
    pub errors: u64,
}

impl DiskFigures {
    /// One operation is answered.
    pub(crate) fn record(&self, kind: Kind, began: Instant, bytes: u64) {
        let tally = match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Flush => &self.flushes,
            Kind::Trim => &self.trims,
        };
        tally.latency.record(began.elapsed());
        if bytes > 0 {
            tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// One request is answered with an error.
    pub(crate) fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers as they are now. Operations that end meanwhile are in it or are not.
    pub fn snapshot(&self) -> DiskSnapshot {
        let operation = |tally: &Tally| OperationSnapshot {
            latency: tally.latency.snapshot(),
            bytes: tally.bytes.load(Ordering::Relaxed),
        };
        DiskSnapshot {
            reads: operation(&self.reads),
            writes: operation(&self.writes),
            flushes: operation(&self.flushes),
            trims: operation(&self.trims),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
