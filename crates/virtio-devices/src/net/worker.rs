//! One queue pair of a network card being served, and the control queue beside the first.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use telemetry::RateLimited;
use uring::{Bell, File, Immediate, Ring};
use virtio::VirtQueue;

use super::receive::{Received, Receiver};
use super::request::{Ack, Command};
use super::transmit::{Sent, send};
use super::wire::Wire;
use crate::crew::{Place, Served, Service};

/// Frames moved in each direction before the worker looks at everything else. Picked: a few hundred microseconds.
const BATCH: usize = 64;
/// How long a wire that fails is left alone: an interface that is taken down or away, and may come back.
const RETRY: Duration = Duration::from_millis(100);

/// What a network card did so far, over all pairs and activations.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames the guest received.
    pub received_frames: AtomicU64,
    /// Their bytes, headers of this device not counted.
    pub received_bytes: AtomicU64,
    /// Frames the guest sent.
    pub sent_frames: AtomicU64,
    /// Their bytes.
    pub sent_bytes: AtomicU64,
    /// Frames of the guest that the wire did not take.
    pub dropped_frames: AtomicU64,
    /// Times the wire failed to give a frame, or gave one that is too short, or too long for the guest's buffers.
    pub wire_errors: AtomicU64,
}

impl NetCounters {
    fn frame(frames: &AtomicU64, bytes: &AtomicU64, length: usize) {
        frames.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// One queue of the wire, and whether it takes frames.
pub(super) struct Lane {
    fd: Arc<OwnedFd>,
    attached: AtomicBool,
    /// Rung when `attached` changes, while a worker serves the pair.
    bell: Mutex<Option<Bell>>,
}

/// What all workers of a card share.
pub(super) struct Shared {
    wire: Box<dyn Wire>,
    lanes: Vec<Lane>,
    pub(super) counters: Arc<NetCounters>,
    /// For commands that failed: the guest decides how many there are.
    log: RateLimited,
}

impl Shared {
    pub(super) fn new(wire: Box<dyn Wire>, lanes: usize) -> Self {
        let lane = |fd: &Arc<OwnedFd>| Lane {
            fd: Arc::clone(fd),
            attached: AtomicBool::new(true),
            bell: Mutex::default(),
        };
        Self {
            lanes: wire.queues().iter().take(lanes).map(lane).collect(),
            wire,
            counters: Arc::default(),
            log: RateLimited::new(),
        }
    }

    pub(super) const fn pairs(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn wire(&self) -> &dyn Wire {
        &*self.wire
    }

    /// Attaches every queue again.
    pub(super) fn release(&self) {
        if let Err(error) = self.use_pairs(self.pairs()) {
            tracing::debug!(%error, "tap queues can not be attached again");
        }
    }

    /// Pairs that take frames.
    pub(super) fn attached(&self) -> usize {
        let attached = |lane: &&Lane| lane.attached.load(Ordering::SeqCst);
        self.lanes.iter().filter(attached).count()
    }

    /// Uses the first `pairs` pairs, and detaches the others, so that no frame waits where nobody looks.
    pub(super) fn use_pairs(&self, pairs: usize) -> std::io::Result<()> {
        for (number, lane) in self.lanes.iter().enumerate() {
            let attached = number < pairs;
            if lane.attached.load(Ordering::SeqCst) != attached {
                self.wire.set_attached(lane.fd.as_fd(), attached)?;
                lane.attached.store(attached, Ordering::SeqCst);
                let bell = lane.bell.lock().unwrap_or_else(PoisonError::into_inner);
                bell.iter().for_each(Bell::ring);
            }
        }
        Ok(())
    }
}

/// The queues of one pair; a driver may leave any of them out.
pub(super) struct Queues {
    pub(super) receive: Option<Receiver>,
    pub(super) transmit: Option<Served>,
    pub(super) control: Option<Served>,
}

/// A [`Service`] for one pair.
pub(super) struct Worker {
    queues: Queues,
    pair: usize,
    shared: Arc<Shared>,
    wire: File,
    io: Immediate,
    ring: Ring,
    bell: Bell,
    /// Somebody rings when the wire may have frames.
    watched: Rc<Cell<bool>>,
}

impl Worker {
    /// A worker for pair `pair` of `shared`; `None` if there is no such pair.
    pub(super) fn new(queues: Queues, pair: usize, shared: Arc<Shared>, place: &Place) -> Option<Self> {
        let lane = shared.lanes.get(pair)?;
        *lane.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(place.bell.clone());
        Some(Self {
            wire: File::from(Arc::clone(&lane.fd)),
            queues,
            pair,
            shared,
            io: Immediate::new(),
            ring: place.ring.clone(),
            bell: place.bell.clone(),
            watched: Rc::default(),
        })
    }

    fn attached(&self) -> bool {
        self.shared
            .lanes
            .get(self.pair)
            .is_some_and(|lane| lane.attached.load(Ordering::SeqCst))
    }

    /// True if there may be more.
    fn receive(&mut self) -> bool {
        if !self.attached() {
            return false;
        }
        let counters = Arc::clone(&self.shared.counters);
        for _ in 0..BATCH {
            let Some(receiver) = &mut self.queues.receive else {
                return false;
            };
            match receiver.receive(&self.wire, &mut self.io) {
                Received::Frame(length) => {
                    NetCounters::frame(&counters.received_frames, &counters.received_bytes, length);
                }
                Received::Misfit => {
                    counters.wire_errors.fetch_add(1, Ordering::Relaxed);
                }
                Received::NoFrame => {
                    self.watch(None);
                    return false;
                }
                Received::Failed(kind) => {
                    counters.wire_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(?kind, "a tap queue gives no frames");
                    self.watch(Some(RETRY));
                    return false;
                }
                Received::Again => return true,
                // The next kick brings room; a queue that is given up gets nothing more.
                Received::NoRoom | Received::GivenUp => return false,
            }
        }
        true
    }

    /// True if there may be more.
    fn transmit(&mut self) -> bool {
        let counters = &self.shared.counters;
        for _ in 0..BATCH {
            let Some(queue) = &mut self.queues.transmit else {
                return false;
            };
            match send(queue, &self.wire, &mut self.io) {
                Sent::Frame(length) => NetCounters::frame(&counters.sent_frames, &counters.sent_bytes, length),
                Sent::Dropped(kind) => {
                    counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
                    tracing::trace!(?kind, "a frame of the guest was dropped");
                }
                Sent::Again => return true,
                Sent::NoFrame | Sent::GivenUp => return false,
            }
        }
        true
    }

    /// True if there may be more.
    fn control(&mut self) -> bool {
        for _ in 0..BATCH {
            let Some(queue) = &mut self.queues.control else {
                return false;
            };
            match queue.with(Command::next) {
                Some(Some(mut command)) => {
                    let ack = obey(&self.shared, command.pairs);
                    command.ack.copy_from(&[ack as u8]);
                    let _ = queue.with(|queue| queue.push(command.head, 1));
                }
                Some(None) => return queue.with(VirtQueue::arm) == Some(true),
                None => return false,
            }
        }
        true
    }

    /// Rings when the wire is readable, or after `pause`.
    fn watch(&self, pause: Option<Duration>) {
        if self.watched.replace(true) {
            return;
        }
        let (ring, wire, bell) = (self.ring.clone(), self.wire.clone(), self.bell.clone());
        let watched = Rc::clone(&self.watched);
        let _watching = self.ring.spawn(async move {
            // Both fail only with the executor, or where the wire is gone: the next read says so.
            let _ = match pause {
                Some(pause) => ring.sleep(pause).await,
                None => ring.readable(&wire).await,
            };
            watched.set(false);
            bell.ring();
        });
    }
}

impl Service for Worker {
    fn begin(&mut self) {
        let more = [self.control(), self.transmit(), self.receive()];
        if more.contains(&true) {
            self.bell.ring();
        }
    }

    fn settle(&mut self) -> bool {
        let Queues {
            receive,
            transmit,
            control,
        } = &mut self.queues;
        let receive = receive.as_mut().map(|receiver| &mut receiver.queue);
        for queue in [receive, transmit.as_mut(), control.as_mut()].into_iter().flatten() {
            let _ = queue.with(VirtQueue::signal);
        }
        true
    }

    /// Posted chains go back, so that the queue's position tells all there is to tell.
    fn hold(&mut self) {
        if let Some(receiver) = &mut self.queues.receive {
            receiver.unpost();
        }
    }

    fn finish(self) -> Vec<VirtQueue> {
        if let Some(lane) = self.shared.lanes.get(self.pair) {
            *lane.bell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let receive = self.queues.receive.map(|receiver| receiver.queue);
        let queues = [receive, self.queues.transmit, self.queues.control]
            .into_iter()
            .flatten();
        queues.map(Served::into_queue).collect()
    }
}

/// Does what the control queue asks.
fn obey(shared: &Shared, pairs: Option<u16>) -> Ack {
    let Some(pairs) = pairs.map(usize::from) else {
        return Ack::Error;
    };
    if pairs == 0 || pairs > shared.pairs() {
        return Ack::Error;
    }
    match shared.use_pairs(pairs) {
        Ok(()) => Ack::Ok,
        Err(error) => {
            if let Some(admitted) = shared.log.admit() {
                let suppressed = admitted.suppressed;
                tracing::warn!(%error, pairs, suppressed, "tap queues can not be attached or detached");
            }
            Ack::Error
        }
    }
}
