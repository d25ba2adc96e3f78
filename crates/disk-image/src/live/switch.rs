//! A disk whose inside is exchanged under a running guest.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use disk::{
    Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode, total_len,
};
use guestmem::IoBuf;
use uring::kept;

use super::copying::Copying;
use super::gate::{Gate, Inside, Seat};
use super::ranges::{Held, Ranges};

/// A disk that may become another one while it is used: same size or larger, same sectors, same contents. Without a job it costs a
/// request two atomic additions.
///
/// A queue lets go of the disk that was below with its first request after a change, and not before.
#[derive(Clone)]
pub struct Switch {
    name: Arc<str>,
    gate: Arc<Gate>,
}

impl Switch {
    /// `disk`, for now.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            name: disk.name().into(),
            gate: Gate::new(disk),
        }
    }

    /// The disk that is below now.
    pub fn current(&self) -> Arc<dyn Disk> {
        self.gate.way().disk
    }

    pub(super) const fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Disk for Switch {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.current().geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        let seat = self.gate.seat();
        let lane = Lane::open(&self.gate)?;
        Ok(Rc::new(Queue(Rc::new(Inner {
            gate: Arc::clone(&self.gate),
            seat,
            lane: RefCell::new(Rc::new(lane)),
        }))))
    }
}

/// A queue's way through one generation.
struct Lane {
    generation: u64,
    io: Rc<dyn DiskIo>,
    ranges: Option<Arc<Ranges>>,
    mirror: Option<(Arc<Copying>, Rc<dyn DiskIo>)>,
}

impl Lane {
    fn open(gate: &Gate) -> Result<Self, DiskError> {
        let generation = gate.generation();
        let way = gate.way();
        let mirror = match way.mirror {
            None => None,
            Some(copying) => {
                let target = copying.target().open_queue()?;
                Some((copying, target))
            }
        };
        Ok(Self {
            generation,
            io: way.disk.open_queue()?,
            ranges: way.ranges,
            mirror,
        })
    }

    /// Waits until no job is at work on a range that is to be changed. What the disk refuses anyway holds nothing.
    async fn hold(&self, op: DiskOp, offset: u64, len: u64) -> Option<Held> {
        let ranges = self.ranges.as_ref()?;
        self.io.geometry().check(op, offset, len).ok()?;
        Some(ranges.change(offset..offset.saturating_add(len)).await)
    }

    /// Does to the mirror what was done to the disk. If either failed they differ, and the mirror is of no use.
    async fn follow(
        &self,
        done: Result<(), DiskError>,
        act: impl AsyncFnOnce(&dyn DiskIo) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        if let Some((copying, target)) = &self.mirror {
            match &done {
                Err(error) if is_refusal(error) => {}
                Err(error) => copying.fail(error.clone()),
                Ok(()) => {
                    if let Err(error) = act(&**target).await {
                        copying.fail(error);
                    }
                }
            }
        }
        done
    }
}

/// Whether an error tells that nothing was done.
fn is_refusal(error: &DiskError) -> bool {
    use DiskErrorKind::{Misaligned, OutOfRange, ReadOnly, Unsupported};
    matches!(error.kind(), Misaligned | OutOfRange | ReadOnly | Unsupported)
}

struct Inner {
    gate: Arc<Gate>,
    seat: Arc<Seat>,
    lane: RefCell<Rc<Lane>>,
}

impl Inner {
    /// Lets a request in, on the way of the moment.
    async fn enter(&self) -> Result<(Inside, Rc<Lane>), DiskError> {
        let inside = self.gate.enter(&self.seat).await;
        let mut lane = Rc::clone(&self.lane.borrow());
        if lane.generation != self.gate.generation() {
            lane = Rc::new(Lane::open(&self.gate)?);
            self.lane.replace(Rc::clone(&lane));
        }
        Ok((inside, lane))
    }
}

struct Queue(Rc<Inner>);

async fn write(inner: &Inner, offset: u64, bufs: Vec<IoBuf>) -> Transferred {
    let (inside, lane) = match inner.enter().await {
        Ok(entered) => entered,
        Err(error) => return (Err(error), bufs),
    };
    let held = lane.hold(DiskOp::Write, offset, total_len(&bufs)).await;
    let (result, mut bufs) = lane.io.write(offset, bufs).await;
    if let Some((copying, target)) = &lane.mirror {
        match &result {
            Err(error) if is_refusal(error) => {}
            Err(error) => copying.fail(error.clone()),
            Ok(()) => {
                let mirrored;
                (mirrored, bufs) = target.write(offset, bufs).await;
                if let Err(error) = mirrored {
                    copying.fail(error);
                }
            }
        }
    }
    drop((held, inside));
    (result, bufs)
}

/// What a discarded range reads as is each store's choice, and two stores have to choose alike: to be mirrored, it becomes zeroes.
async fn discard(inner: &Inner, offset: u64, len: u64) -> Result<(), DiskError> {
    let (_inside, lane) = inner.enter().await?;
    let _held = lane.hold(DiskOp::Discard, offset, len).await;
    if lane.mirror.is_none() {
        return lane.io.discard(offset, len).await;
    }
    lane.io.geometry().check(DiskOp::Discard, offset, len)?;
    let done = lane.io.write_zeroes(offset, len, ZeroMode::MayUnmap).await;
    let follow = async |target: &dyn DiskIo| target.write_zeroes(offset, len, ZeroMode::MayUnmap).await;
    lane.follow(done, follow).await
}

async fn write_zeroes(inner: &Inner, offset: u64, len: u64, mode: ZeroMode) -> Result<(), DiskError> {
    let (_inside, lane) = inner.enter().await?;
    let _held = lane.hold(DiskOp::WriteZeroes, offset, len).await;
    let done = lane.io.write_zeroes(offset, len, mode).await;
    let follow = async |target: &dyn DiskIo| target.write_zeroes(offset, len, mode).await;
    lane.follow(done, follow).await
}

async fn grow(inner: &Inner, size_bytes: u64) -> Result<(), DiskError> {
    let (_inside, lane) = inner.enter().await?;
    let done = lane.io.grow(size_bytes).await;
    let follow = async |target: &dyn DiskIo| match target.geometry().size_bytes >= size_bytes {
        true => Ok(()),
        false => target.grow(size_bytes).await,
    };
    match done {
        // Nothing has changed.
        Err(error) => Err(error),
        done => lane.follow(done, follow).await,
    }
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.0.gate.way().disk.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let inner = Rc::clone(&self.0);
        kept(async move {
            match inner.enter().await {
                Ok((_inside, lane)) => lane.io.read(offset, bufs).await,
                Err(error) => (Err(error), bufs),
            }
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let inner = Rc::clone(&self.0);
        kept(async move { write(&inner, offset, bufs).await })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        let inner = Rc::clone(&self.0);
        kept(async move {
            let (_inside, lane) = inner.enter().await?;
            lane.io.flush().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let inner = Rc::clone(&self.0);
        kept(async move { discard(&inner, offset, len).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let inner = Rc::clone(&self.0);
        kept(async move { write_zeroes(&inner, offset, len, mode).await })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let inner = Rc::clone(&self.0);
        kept(async move { grow(&inner, size_bytes).await })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        let inner = Rc::clone(&self.0);
        kept(async move {
            let (_inside, lane) = inner.enter().await?;
            lane.io.extents(offset, len).await
        })
    }
}

/// Refuses a disk that can not take another's place.
pub(super) fn fits(old: &dyn Disk, new: &dyn Disk) -> Result<(), DiskError> {
    let (old, new) = (old.geometry(), new.geometry());
    let same = new.logical_sector_bytes == old.logical_sector_bytes && new.access == old.access;
    match same && new.size_bytes == old.size_bytes {
        true => Ok(()),
        false => {
            let error = DiskError::new(DiskOp::Open, DiskErrorKind::Unsupported);
            Err(error.because("size, sectors and access of the new disk have to be those of the old one"))
        }
    }
}
