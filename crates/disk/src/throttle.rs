//! A disk that is no faster than it is told.
//!
//! ```text
//!   queue 1 ─ requests ─┐          each class: a line per queue, queues by turns
//!   queue 2 ─ requests ─┤  reads ──────────────▶ buckets of reads  ─┐
//!   queue 3 ─ requests ─┘  changes ────────────▶ buckets of changes ┼─▶ buckets of all ─▶ the disk below
//!                          flushes ───────────────────────────────── ┘
//! ```
//!
//! A request goes ahead once every bucket it draws from holds what it takes, or is full. Those that came later wait, so that small
//! ones do not keep a large one out, and averages are exact. Nobody polls: in each class the request whose turn it is sleeps
//! until its buckets have filled, all others until it is their turn.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use guestmem::IoBuf;

use crate::{Disk, DiskError, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode, total_len};

mod bucket;
mod turns;

use turns::{Class, Cost, QueueId, Turns};

/// A rate, and how far it may be exceeded after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes or operations per second; 0 counts as 1.
    pub per_second: u64,
    /// Bytes or operations that may go at once; 0 counts as 1.
    pub burst: u64,
}

impl Rate {
    /// A rate with a burst of what it gives in `burst`.
    pub fn with_burst(per_second: u64, burst: Duration) -> Self {
        let burst = u128::from(per_second) * burst.as_nanos() / 1_000_000_000;
        Self {
            per_second,
            burst: u64::try_from(burst).unwrap_or(u64::MAX).max(1),
        }
    }
}

/// What a disk is limited to. Every limit that is there holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes read and written. Discards and zeroes move none.
    pub bytes: Option<Rate>,
    /// Bytes read.
    pub read_bytes: Option<Rate>,
    /// Bytes written.
    pub write_bytes: Option<Rate>,
    /// Operations of any kind, flushes included.
    pub operations: Option<Rate>,
    /// Reads.
    pub reads: Option<Rate>,
    /// Changes: writes, discards, write-zeroes.
    pub writes: Option<Rate>,
}

/// Time, as a throttled disk needs it: the executor of its queues' threads has it.
pub trait Timer: Send + Sync {
    /// Time since some moment that never changes. Does not go back.
    fn now(&self) -> Duration;

    /// Waits on the calling thread's executor. May end early or late; both cost accuracy only.
    fn sleep(&self, duration: Duration) -> DiskFuture<'static, ()>;
}

/// `disk` within limits that may be changed at any time.
pub struct Throttle {
    disk: Arc<dyn Disk>,
    turns: Arc<Turns>,
}

/// Changes the limits of a [`Throttle`], from any thread. Clones are one.
#[derive(Clone)]
pub struct Throttling(Arc<Turns>);

impl Throttling {
    /// These limits from now on, for those who wait already, too. Debts and savings are kept as the time they stand for.
    pub fn set(&self, limits: Limits) {
        self.0.set(limits);
    }

    /// The limits that hold.
    pub fn limits(&self) -> Limits {
        self.0.limits()
    }
}

impl Throttle {
    /// `disk`, limited. The buckets are full at first.
    pub fn new(disk: Arc<dyn Disk>, limits: Limits, timer: Arc<dyn Timer>) -> Self {
        Self {
            disk,
            turns: Arc::new(Turns::new(limits, timer)),
        }
    }

    /// The way to change its limits.
    pub fn throttling(&self) -> Throttling {
        Throttling(Arc::clone(&self.turns))
    }
}

impl Disk for Throttle {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(Queue {
            below: self.disk.open_queue()?,
            id: self.turns.new_queue(),
            turns: Arc::clone(&self.turns),
        }))
    }
}

struct Queue {
    below: Rc<dyn DiskIo>,
    id: QueueId,
    turns: Arc<Turns>,
}

impl Queue {
    /// Waits for the turn of a request, unless the disk refuses it anyway.
    async fn admit(&self, op: DiskOp, offset: u64, len: u64) {
        if self.turns.is_unlimited() || self.geometry().check(op, offset, len).is_err() {
            return;
        }
        let (class, bytes) = match op {
            DiskOp::Read => (Class::Read, len),
            DiskOp::Write => (Class::Change, len),
            DiskOp::Discard | DiskOp::WriteZeroes => (Class::Change, 0),
            DiskOp::Open | DiskOp::Flush | DiskOp::Grow | DiskOp::Extents => (Class::Other, 0),
        };
        self.turns.admit(self.id, class, Cost { bytes }).await;
    }
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.admit(DiskOp::Read, offset, total_len(&bufs)).await;
            self.below.read(offset, bufs).await
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.admit(DiskOp::Write, offset, total_len(&bufs)).await;
            self.below.write(offset, bufs).await
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.admit(DiskOp::Flush, 0, 0).await;
            self.below.flush().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.admit(DiskOp::Discard, offset, len).await;
            self.below.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.admit(DiskOp::WriteZeroes, offset, len).await;
            self.below.write_zeroes(offset, len, mode).await
        })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.below.grow(size_bytes)
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.below.extents(offset, len)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.turns.forget_queue(self.id);
    }
}

#[cfg(test)]
mod tests;
