//! One queue of a block device being served.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use disk::{DiskError, DiskErrorKind, DiskIo, ZeroMode};
use telemetry::RateLimited;
use uring::{Bell, Ring};
use virtio::{RingError, Scatter, VirtQueue};

use super::request::{Action, Range, Request, SERIAL_SIZE, Status};
use crate::crew::{Served, Service};
use crate::figures::{DiskFigures, Kind};
use crate::spin::Spin;

/// What all workers of a device share.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) serial: [u8; SERIAL_SIZE],
    pub(super) figures: Arc<DiskFigures>,
    /// The guest may lose completed writes until it flushes; else every write is flushed before it is answered.
    pub(super) writeback: AtomicBool,
    /// The driver has given up the write cache: what is in it has to be durable.
    pub(super) flush_owed: AtomicBool,
    /// For requests that failed: the guest decides how many there are.
    pub(super) log: RateLimited,
}

/// What requests in flight need.
struct Desk {
    io: Rc<dyn DiskIo>,
    queue: RefCell<Served>,
    in_flight: Cell<usize>,
    bell: Bell,
    shared: Arc<Shared>,
}

/// A [`Service`] for one queue.
pub(super) struct Worker {
    desk: Rc<Desk>,
    ring: Ring,
    spin: Spin,
}

impl Worker {
    pub(super) fn new(queue: VirtQueue, io: Rc<dyn DiskIo>, shared: Arc<Shared>, ring: Ring, bell: Bell) -> Self {
        let desk = Rc::new(Desk {
            io,
            queue: RefCell::new(Served::new(queue)),
            in_flight: Cell::new(0),
            bell,
            shared,
        });
        let spin = Spin::new();
        Self { desk, ring, spin }
    }
}

impl Worker {
    /// Makes durable what was written before the driver gave up the write cache; whichever worker comes first does it.
    fn pay_flush(&self) {
        if self.desk.shared.flush_owed.swap(false, Ordering::SeqCst) {
            self.desk.in_flight.set(self.desk.in_flight.get() + 1);
            let desk = Rc::clone(&self.desk);
            let _running = self.ring.spawn(async move {
                let _logged = desk.shared.judge(desk.io.flush().await);
                desk.done();
            });
        }
    }
}

impl Desk {
    fn done(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.bell.ring();
    }
}

impl Service for Worker {
    fn begin(&mut self) {
        self.pay_flush();
        let mut queue = self.desk.queue.borrow_mut();
        // A driver that offers a chain again before it got it back can not have more in flight than the queue holds.
        let limit = usize::from(queue.queue().size());
        while self.desk.in_flight.get() < limit {
            let mut request = queue.with(next);
            if matches!(request, Some(None)) && self.desk.in_flight.get() == 0 {
                // What was finished is told first: that is what the driver may be waiting for.
                let _ = queue.with(VirtQueue::signal);
                request = self.spin.look(|| queue.with(next));
            }
            match request {
                Some(Some(request)) => {
                    self.desk.in_flight.set(self.desk.in_flight.get() + 1);
                    self.spin.begun(self.desk.in_flight.get());
                    let _running = self.ring.spawn(answer(Rc::clone(&self.desk), request));
                }
                Some(None) => {
                    // Not in this loop: a driver that plays with its ring must not keep orders waiting.
                    let again = self.desk.in_flight.get() > 0 && self.spin.takes_another_turn();
                    if again || queue.with(VirtQueue::arm) == Some(true) {
                        self.desk.bell.ring();
                    }
                    break;
                }
                None => break,
            }
        }
    }

    fn settle(&mut self) -> bool {
        let _ = self.desk.queue.borrow_mut().with(VirtQueue::signal);
        self.desk.in_flight.get() == 0
    }

    fn finish(self) -> Vec<VirtQueue> {
        let desk = Rc::into_inner(self.desk);
        desk.map(|desk| desk.queue.into_inner().into_queue())
            .into_iter()
            .collect()
    }
}

/// The next request there is.
fn next(queue: &mut VirtQueue) -> Result<Option<Request>, RingError> {
    let Some(chain) = queue.pop()? else { return Ok(None) };
    Request::parse(&chain, queue.memory()).map(Some)
}

/// Does one request and gives its chain back.
async fn answer(desk: Rc<Desk>, request: Request) {
    let Request {
        head,
        action,
        mut status,
    } = request;
    let (outcome, written) = act(&desk, action).await;
    if outcome != Status::Ok {
        desk.shared.figures.error();
    }
    status.copy_from(&[outcome as u8]);
    let _ = desk
        .queue
        .borrow_mut()
        .with(|queue| queue.push(head, written.saturating_add(1)));
    desk.done();
}

/// The answer, and how many bytes of data were written for the guest.
async fn act(desk: &Desk, action: Action) -> (Status, u32) {
    let began = Instant::now();
    let (kind, status, bytes, written) = match action {
        Action::Read { offset, into } => {
            let bytes = into.len() as u64;
            let (result, _bufs) = desk.io.read(offset, into.into_bufs()).await;
            (Kind::Read, desk.shared.judge(result), bytes, bytes)
        }
        Action::Write { offset, from } => {
            let bytes = from.len() as u64;
            (Kind::Write, write(desk, offset, from).await, bytes, 0)
        }
        Action::Flush => (Kind::Flush, desk.shared.judge(desk.io.flush().await), 0, 0),
        Action::Discard(ranges) => (Kind::Trim, trim(desk, &ranges, false).await, sum(&ranges), 0),
        Action::WriteZeroes(ranges) => (Kind::Trim, trim(desk, &ranges, true).await, sum(&ranges), 0),
        Action::Identify { mut into } => {
            let written = into.copy_from(&desk.shared.serial);
            return (Status::Ok, u32::try_from(written).unwrap_or(0));
        }
        Action::Refuse(status) => return (status, 0),
    };
    let (bytes, written) = if status == Status::Ok { (bytes, written) } else { (0, 0) };
    desk.shared.figures.record(kind, began, bytes);
    (status, u32::try_from(written).unwrap_or(u32::MAX))
}

fn sum(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.len).sum()
}

async fn write(desk: &Desk, offset: u64, from: Scatter) -> Status {
    let (mut result, _bufs) = desk.io.write(offset, from.into_bufs()).await;
    if result.is_ok() && !desk.shared.writeback.load(Ordering::Relaxed) {
        result = desk.io.flush().await;
    }
    desk.shared.judge(result)
}

/// Discards or zeroes one range after the other; the first that fails is the answer.
async fn trim(desk: &Desk, ranges: &[Range], zeroes: bool) -> Status {
    let mut status = Status::Ok;
    for range in ranges {
        let mode = if range.unmap {
            ZeroMode::MayUnmap
        } else {
            ZeroMode::KeepAllocated
        };
        let result = if zeroes {
            desk.io.write_zeroes(range.offset, range.len, mode).await
        } else {
            desk.io.discard(range.offset, range.len).await
        };
        status = desk.shared.judge(result);
        if status != Status::Ok {
            break;
        }
    }
    if zeroes && status == Status::Ok && !desk.shared.writeback.load(Ordering::Relaxed) {
        status = desk.shared.judge(desk.io.flush().await);
    }
    status
}

impl Shared {
    /// Turns the disk's word into the driver's. What the host has to know is logged as such; a guest that asks for the impossible
    /// has a limit of its own, so that it can not hide the rest.
    fn judge(&self, result: Result<(), DiskError>) -> Status {
        static REFUSED: RateLimited = RateLimited::new();
        let Err(error) = result else { return Status::Ok };
        let disk = &self.name;
        match error.kind() {
            DiskErrorKind::Unsupported => return Status::Unsupported,
            DiskErrorKind::OutOfRange | DiskErrorKind::Misaligned | DiskErrorKind::ReadOnly => {
                if let Some(admitted) = REFUSED.admit() {
                    let suppressed = admitted.suppressed;
                    tracing::debug!(disk, %error, suppressed, "guest asked a disk for what it can not do");
                }
            }
            DiskErrorKind::NoSpace | DiskErrorKind::Io | DiskErrorKind::Corrupt | DiskErrorKind::Cancelled => {
                if let Some(admitted) = self.log.admit() {
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::warn!(disk, %error, cause, suppressed = admitted.suppressed, "disk request failed");
                }
            }
        }
        Status::IoError
    }
}
