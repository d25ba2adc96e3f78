//! The two traits: a disk that is shared, and a queue of it that belongs to one thread.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use guestmem::IoBuf;

use crate::{DiskError, DiskErrorKind, DiskOp, Geometry};

/// A disk operation on its way. Not `Send`: it lives and is polled on the thread of its queue.
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Outcome of a transfer, and the buffers back, in the order they were given, whatever the outcome.
pub type Transferred = (Result<(), DiskError>, Vec<IoBuf>);

/// What may become of the space under zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// The space may be given back.
    MayUnmap,
    /// The space stays reserved where the store can promise that.
    KeepAllocated,
}

/// What a piece of a disk consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Has to be read to be known.
    Data,
    /// Reads as zeroes; nothing need be read to know it.
    Zero,
}

/// A piece of a disk, as [`DiskIo::extents`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, bytes from the start of the disk.
    pub offset: u64,
    /// Its length in bytes, not 0.
    pub len: u64,
    /// What it consists of.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte behind it.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A disk: what virtqueue workers, migration and the control plane share.
///
/// Callable from any thread; never blocks on I/O except in [`Disk::open_queue`].
pub trait Disk: Send + Sync {
    /// What to call this disk in messages: the path or name an operator would recognise.
    fn name(&self) -> &str;

    /// Size and abilities now. Only `size_bytes` may change over the disk's life, and only upwards.
    fn geometry(&self) -> Geometry;

    /// A new queue, for the calling thread.
    ///
    /// The caller is on the thread that will poll every future of the queue; an implementor that needs an executor of this
    /// thread fails with [`crate::DiskErrorKind::Unsupported`] where there is none. Any number of queues, on any number of
    /// threads, work on the same contents at once. The disk stays open while any of its queues is.
    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError>;
}

/// One queue of a disk: asynchronous operations with owned buffers.
///
/// **Ranges.** Offsets and lengths are bytes. Callers may pass anything; the implementor checks with [`Geometry::check`]
/// before it touches the store and refuses without side effects. A length of zero inside the disk succeeds and does nothing.
/// The length of a transfer is the sum of its buffers' lengths, which need no alignment of their own, and any number of
/// buffers is taken. Transfers are whole: `Ok` means every byte.
///
/// **Order.** There is none between operations in flight, not even overlapping ones: a caller that cares waits for the first
/// before it starts the second. What one operation has completed, every operation started afterwards, on any queue, sees.
///
/// **Durability.** A completed write, discard or write-zeroes is visible but volatile. A [`DiskIo::flush`] that succeeds makes
/// durable every change that completed, on any queue, before the flush was started; it promises nothing about those still in
/// flight. After a flush has failed, changes since the last good one may be lost although a later flush succeeds: callers
/// report the failure and never retry in silence.
///
/// **Errors.** A failed transfer leaves its buffers (read) or its range of the disk (write, discard, write-zeroes) in an
/// unknown mixture of old and new, at byte granularity; bytes outside the range are untouched. A failure concerns one
/// operation: the queue remains usable.
///
/// **Dropped futures.** An operation may have started once its method was called, and has once its future was polled.
/// Dropping the future does not undo it: it may still happen, at any time before the queue's executor ends, and the
/// implementor keeps the buffers until it has. A caller that must know waits instead.
pub trait DiskIo {
    /// Size and abilities now, as [`Disk::geometry`].
    fn geometry(&self) -> Geometry;

    /// Fills `bufs` from `offset` on.
    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred>;

    /// Writes `bufs` from `offset` on. The caller does not change what is in them until they come back; a guest that does
    /// (the memory is its own) gets any mixture written and nothing worse.
    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred>;

    /// Does a [`DiskIo::write`] within this call, where that takes no waiting: true, and all of it is complete. False: nothing or a part
    /// of it was done, and [`DiskIo::write`] is the way. Never done unless implemented; decorators need not pass it on.
    fn write_now(&self, _offset: u64, _bufs: &[IoBuf]) -> bool {
        false
    }

    /// Makes completed changes durable. On a read-only disk it succeeds at once.
    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>>;

    /// Says that the contents of the range are of no use any more. A hint: afterwards each sector of the range reads as it
    /// was or as zeroes, and stays so until it is written.
    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>>;

    /// Makes the range read as zeroes, by whatever is cheapest within `mode`. Every writable disk can do it.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>>;

    /// Makes the disk `size_bytes` large. The new space reads as zeroes, and every queue sees the new geometry. The size the disk
    /// has succeeds; a smaller one is [`DiskErrorKind::OutOfRange`]. A store that is full says [`DiskErrorKind::NoSpace`], one
    /// of fixed size, which is what this does unless implemented, [`DiskErrorKind::Unsupported`]. Durable after a flush.
    /// Decorators pass it on.
    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let grows = self.geometry().check_grow(size_bytes);
        Box::pin(async move {
            match grows? {
                false => Ok(()),
                true => Err(DiskError::new(DiskOp::Grow, DiskErrorKind::Unsupported).at(0, size_bytes)),
            }
        })
    }

    /// What the range consists of: pieces in order and without gaps, from `offset` on, in whole logical sectors. They may stop
    /// short of the range's end, but never at its start, so that a caller comes again for the rest; none for a length of 0.
    /// Changes that are in flight meanwhile may be seen or not. One piece of data unless implemented; decorators pass it on.
    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        let checked = self.geometry().check(DiskOp::Extents, offset, len);
        Box::pin(async move {
            checked?;
            let kind = ExtentKind::Data;
            Ok(if len == 0 {
                Vec::new()
            } else {
                vec![Extent { offset, len, kind }]
            })
        })
    }
}
