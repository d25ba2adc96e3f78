//! Failure injection: a disk that fails where a plan says so.

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use guestmem::IoBuf;

use crate::{Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode};

/// When a fault strikes, seen from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The operation does not reach the store.
    Before,
    /// The store has done the operation, and yet it is reported as failed.
    After,
}

/// One thing to go wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The operation it waits for.
    pub op: DiskOp,
    /// Bytes it waits for: any request that touches them. A flush touches every range.
    pub range: Range<u64>,
    /// How many matching operations pass first.
    pub skip: u64,
    /// How many fail after that; [`u64::MAX`] for all.
    pub count: u64,
    /// What they fail with.
    pub kind: DiskErrorKind,
    /// When.
    pub strike: Strike,
}

impl Fault {
    /// Every `op` fails with `kind`, from now on, anywhere, before it reaches the store.
    pub const fn always(op: DiskOp, kind: DiskErrorKind) -> Self {
        Self {
            op,
            range: 0..u64::MAX,
            skip: 0,
            count: u64::MAX,
            kind,
            strike: Strike::Before,
        }
    }

    fn touches(&self, offset: u64, len: u64) -> bool {
        self.op == DiskOp::Flush || (offset < self.range.end && self.range.start < offset.saturating_add(len))
    }
}

/// What is to go wrong with a [`Faulty`] disk. Clones are one plan; it may be changed from any thread while the disk works.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan(Arc<Mutex<Script>>);

#[derive(Debug, Default)]
struct Script {
    faults: Vec<Fault>,
    struck: u64,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault. Of several that match one operation the oldest strikes.
    pub fn inject(&self, fault: Fault) {
        self.with(|script| script.faults.push(fault));
    }

    /// Heals the disk.
    pub fn clear(&self) {
        self.with(|script| script.faults.clear());
    }

    /// How many operations were failed so far.
    pub fn struck(&self) -> u64 {
        self.with(|script| script.struck)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Script) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn next(&self, op: DiskOp, offset: u64, len: u64) -> Option<(Strike, DiskError)> {
        self.with(|script| {
            let index = script.faults.iter_mut().position(|fault| {
                if fault.op != op || !fault.touches(offset, len) {
                    return false;
                }
                let strikes = fault.skip == 0;
                fault.skip = fault.skip.saturating_sub(1);
                strikes
            })?;
            let fault = script.faults.get_mut(index)?;
            let hit = (
                fault.strike,
                DiskError::new(op, fault.kind).at(offset, len).because("injected fault"),
            );
            if fault.count != u64::MAX {
                fault.count = fault.count.saturating_sub(1);
            }
            if fault.count == 0 {
                script.faults.remove(index);
            }
            script.struck += 1;
            Some(hit)
        })
    }
}

/// A disk whose operations fail as its [`FaultPlan`] says. Requests that the disk itself would refuse are passed on, so that
/// its answer to them stays its own.
pub struct Faulty {
    disk: Arc<dyn Disk>,
    plan: FaultPlan,
}

impl Faulty {
    /// `disk`, failing by `plan`.
    pub fn new(disk: Arc<dyn Disk>, plan: FaultPlan) -> Self {
        Self { disk, plan }
    }
}

impl Disk for Faulty {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        if let Some((_, error)) = self.plan.next(DiskOp::Open, 0, 1) {
            return Err(error);
        }
        Ok(Rc::new(FaultyQueue {
            queue: self.disk.open_queue()?,
            plan: self.plan.clone(),
        }))
    }
}

struct FaultyQueue {
    queue: Rc<dyn DiskIo>,
    plan: FaultPlan,
}

impl FaultyQueue {
    fn next(&self, op: DiskOp, offset: u64, len: u64) -> Option<(Strike, DiskError)> {
        self.geometry().check(op, offset, len).ok()?;
        self.plan.next(op, offset, len)
    }
}

async fn transfer(
    fault: Option<(Strike, DiskError)>,
    bufs: Vec<IoBuf>,
    act: impl AsyncFnOnce(Vec<IoBuf>) -> Transferred,
) -> Transferred {
    match fault {
        None => act(bufs).await,
        Some((Strike::Before, error)) => (Err(error), bufs),
        Some((Strike::After, error)) => {
            let (result, bufs) = act(bufs).await;
            (result.and(Err(error)), bufs)
        }
    }
}

async fn plain<T>(
    fault: Option<(Strike, DiskError)>,
    act: DiskFuture<'_, Result<T, DiskError>>,
) -> Result<T, DiskError> {
    match fault {
        None => act.await,
        Some((Strike::Before, error)) => Err(error),
        Some((Strike::After, error)) => act.await.and(Err(error)),
    }
}

impl DiskIo for FaultyQueue {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let fault = self.next(DiskOp::Read, offset, crate::total_len(&bufs));
        Box::pin(transfer(fault, bufs, async move |bufs| {
            self.queue.read(offset, bufs).await
        }))
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let fault = self.next(DiskOp::Write, offset, crate::total_len(&bufs));
        Box::pin(transfer(fault, bufs, async move |bufs| {
            self.queue.write(offset, bufs).await
        }))
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        let fault = self.next(DiskOp::Flush, 0, 0);
        Box::pin(async move { plain(fault, Box::pin(async { self.queue.flush().await })).await })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let fault = self.next(DiskOp::Discard, offset, len);
        Box::pin(async move { plain(fault, Box::pin(async move { self.queue.discard(offset, len).await })).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let fault = self.next(DiskOp::WriteZeroes, offset, len);
        let act = Box::pin(async move { self.queue.write_zeroes(offset, len, mode).await });
        Box::pin(plain(fault, act))
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let size_now = self.geometry().size_bytes;
        let fault = match self.geometry().check_grow(size_bytes) {
            Ok(true) => self.plan.next(DiskOp::Grow, size_now, size_bytes - size_now),
            Ok(false) | Err(_) => None,
        };
        let act = Box::pin(async move { self.queue.grow(size_bytes).await });
        Box::pin(plain(fault, act))
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        let fault = self.next(DiskOp::Extents, offset, len);
        let act = Box::pin(async move { self.queue.extents(offset, len).await });
        Box::pin(plain(fault, act))
    }
}
