//! Which requests are in flight, and holding them up while the disk below changes.
//!
//! A request counts itself in before it looks whether the gate is closed; who closes the gate looks at the counts afterwards. One of
//! the two sees the other. Each queue counts by itself, so that queues do not get in each other's way.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use disk::Disk;

use super::copying::Copying;
use super::ranges::Ranges;

/// Another job is at work on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another job is at work on this disk: wait for its end, or cancel it")]
pub struct Busy;

/// What requests pass through.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) disk: Arc<dyn Disk>,
    /// Changes keep away from what a job works on.
    pub(super) ranges: Option<Arc<Ranges>>,
    /// Changes go there, too.
    pub(super) mirror: Option<Arc<Copying>>,
}

/// One queue's count of its requests in flight.
#[derive(Default)]
pub(super) struct Seat(AtomicUsize);

struct Room {
    way: Way,
    seats: Vec<Weak<Seat>>,
    /// Those who wait for the gate to open.
    outside: Vec<Waker>,
    /// Who waits for everybody to have left.
    drainer: Option<Waker>,
}

pub(super) struct Gate {
    closed: AtomicBool,
    generation: AtomicU64,
    busy: AtomicBool,
    room: Mutex<Room>,
}

/// A request that is in flight until this is dropped.
pub(super) struct Inside {
    gate: Arc<Gate>,
    seat: Arc<Seat>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.gate.leave(&self.seat);
    }
}

/// The right to be at work on the disk. Ends when dropped.
pub(super) struct Job(Arc<Gate>);

impl Job {
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.0
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

/// Nothing is in flight until this is dropped.
pub(super) struct Drained(Arc<Gate>);

impl Drained {
    /// Requests go this way from now on.
    pub(super) fn set(&self, way: Way) {
        let mut room = self.0.lock();
        room.way = way;
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let mut room = self.0.lock();
        self.0.closed.store(false, Ordering::SeqCst);
        let outside = std::mem::take(&mut room.outside);
        drop(room);
        outside.into_iter().for_each(Waker::wake);
    }
}

impl Gate {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self {
            closed: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            room: Mutex::new(Room {
                way: Way {
                    disk,
                    ranges: None,
                    mirror: None,
                },
                seats: Vec::new(),
                outside: Vec::new(),
                drainer: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn way(&self) -> Way {
        self.lock().way.clone()
    }

    /// Changes whenever the way does, and never while a request is inside.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn seat(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        let mut room = self.lock();
        room.seats.retain(|seat| seat.strong_count() > 0);
        room.seats.push(Arc::downgrade(&seat));
        seat
    }

    pub(super) fn begin_job(self: &Arc<Self>) -> Result<Job, Busy> {
        match self.busy.swap(true, Ordering::SeqCst) {
            true => Err(Busy),
            false => Ok(Job(Arc::clone(self))),
        }
    }

    /// Waits until the gate is open, and counts a request in.
    pub(super) async fn enter(self: &Arc<Self>, seat: &Arc<Seat>) -> Inside {
        loop {
            seat.0.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return Inside {
                    gate: Arc::clone(self),
                    seat: Arc::clone(seat),
                };
            }
            self.leave(seat);
            self.opened().await;
        }
    }

    fn leave(&self, seat: &Seat) {
        seat.0.fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            let drainer = self.lock().drainer.take();
            if let Some(drainer) = drainer {
                drainer.wake();
            }
        }
    }

    fn opened(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|context| {
            let mut room = self.lock();
            if !self.closed.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
            room.outside.push(context.waker().clone());
            Poll::Pending
        })
    }

    /// Closes the gate, and waits until nothing is in flight. Only for who has the [`Job`].
    pub(super) async fn drain(self: &Arc<Self>) -> Drained {
        // Opens again if this is dropped before it is through.
        let drained = Drained(Arc::clone(self));
        self.closed.store(true, Ordering::SeqCst);
        poll_fn(|context| {
            let mut room = self.lock();
            room.drainer = Some(context.waker().clone());
            let seats = room.seats.iter().filter_map(Weak::upgrade);
            match seats.map(|seat| seat.0.load(Ordering::SeqCst)).sum::<usize>() {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        drained
    }
}
