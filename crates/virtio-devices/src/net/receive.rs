//! From the wire to the guest.
//!
//! Chains are taken from the queue ahead of the frames they are for, and stay posted until a frame fills them: with merged
//! buffers a frame may need many, and taking them anew for each frame would cost more than the frame.

use std::collections::VecDeque;
use std::io;

use guestmem::{IoBuf, IoBufError};
use uring::{File, Immediate};
use virtio::{RingError, Scatter, VirtQueue};

use super::config::HEADER_SIZE;
use crate::crew::Served;

/// Where `num_buffers` lies in the header (virtio 1.2 §5.1.6).
const NUM_BUFFERS_AT: usize = 10;
/// Most chains of one system call; so many buffers it takes.
const CHAINS_MAX: usize = 512;

struct Posted {
    head: u16,
    into: Scatter,
}

/// Whether the longest frame fits into what is posted.
enum Room {
    Enough,
    /// No, and the guest will kick when that changes.
    None,
    /// No, but it may by now.
    Again,
}

/// How far one attempt came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A frame of so many bytes went to the guest, its header not counted.
    Frame(usize),
    /// A frame was lost: too short to be one, or too long for what the guest gave.
    Misfit,
    /// The guest has no room.
    NoRoom,
    /// The guest has made room meanwhile: try again.
    Again,
    /// The wire has nothing.
    NoFrame,
    /// The wire failed.
    Failed(io::ErrorKind),
    /// The queue failed and is given up.
    GivenUp,
}

/// The receive queue of a pair.
pub(super) struct Receiver {
    pub(super) queue: Served,
    posted: VecDeque<Posted>,
    /// Bytes in `posted`.
    room: usize,
    /// A frame may go to several chains.
    merges: bool,
    frame_max: usize,
    /// Ours, behind the guest's buffers: a frame that reaches into it was cut off.
    beyond: IoBuf,
}

impl Receiver {
    pub(super) fn new(queue: VirtQueue, merges: bool, frame_max: usize) -> Result<Self, IoBufError> {
        Ok(Self {
            queue: Served::new(queue),
            posted: VecDeque::new(),
            room: 0,
            merges,
            frame_max,
            beyond: IoBuf::heap(1, 1)?,
        })
    }

    /// Moves one frame, if there is one and room for it.
    pub(super) fn receive(&mut self, wire: &File, io: &mut Immediate) -> Received {
        match self.post() {
            None => return Received::GivenUp,
            Some(Room::None) => return Received::NoRoom,
            Some(Room::Again) => return Received::Again,
            Some(Room::Enough) => {}
        }
        let chains = if self.merges { self.posted.len() } else { 1 };
        let posted = self.posted.iter().take(chains);
        let room: usize = posted.clone().map(|posted| posted.into.len()).sum();
        let bufs = posted.flat_map(|posted| posted.into.bufs());
        match io.receive(wire, bufs.chain(std::iter::once(&self.beyond))) {
            Ok(length) if length < HEADER_SIZE || length > room => Received::Misfit,
            Ok(length) => match self.hand_over(length) {
                Some(()) => Received::Frame(length - HEADER_SIZE),
                None => Received::GivenUp,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::NoFrame,
            Err(error) => Received::Failed(error.kind()),
        }
    }

    /// Takes chains until the longest frame fits. A driver whose whole queue is shorter than a frame gets shorter ones.
    fn post(&mut self) -> Option<Room> {
        loop {
            let enough = if self.merges {
                self.room >= self.frame_max || self.posted.len() >= CHAINS_MAX
            } else {
                !self.posted.is_empty()
            };
            if enough || self.posted.len() >= usize::from(self.queue.queue().size()) {
                return Some(Room::Enough);
            }
            let taken = self.queue.with(|queue| {
                let Some(chain) = queue.pop()? else { return Ok(None) };
                let into = chain.writable(queue.memory())?;
                if into.len() < HEADER_SIZE {
                    return Err(RingError::BadChain {
                        head: chain.head,
                        why: "has no room for a frame's header",
                    });
                }
                Ok(Some(Posted { head: chain.head, into }))
            })?;
            match taken {
                Some(posted) => {
                    self.room += posted.into.len();
                    self.posted.push_back(posted);
                }
                None => {
                    let more = self.queue.with(VirtQueue::arm)?;
                    return Some(if more { Room::Again } else { Room::None });
                }
            }
        }
    }

    /// Gives the chains that `length` bytes went to back to the driver.
    fn hand_over(&mut self, length: usize) -> Option<()> {
        let mut rest = length;
        let mut filled = 0;
        for posted in &self.posted {
            filled += 1;
            rest = rest.saturating_sub(posted.into.len());
            if rest == 0 {
                break;
            }
        }
        if let Some(first) = self.posted.front_mut() {
            first
                .into
                .copy_at(NUM_BUFFERS_AT, &u16::try_from(filled).unwrap_or(1).to_le_bytes());
        }
        let mut rest = length;
        for posted in self.posted.drain(..filled) {
            self.room -= posted.into.len();
            let here = rest.min(posted.into.len());
            rest -= here;
            let written = u32::try_from(here).unwrap_or(u32::MAX);
            self.queue.with(|queue| queue.push(posted.head, written))?;
        }
        Some(())
    }

    /// Makes every posted chain available again: nobody else may fill it.
    pub(super) fn unpost(&mut self) {
        while self.posted.pop_back().is_some() {
            let _ = self.queue.with(|queue| {
                queue.unpop();
                Ok(())
            });
        }
        self.room = 0;
    }
}
