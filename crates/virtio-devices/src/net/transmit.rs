//! From the guest to the wire.

use std::io;

use uring::{File, Immediate};

use super::config::HEADER_SIZE;
use crate::crew::Served;

/// How far one attempt came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// A frame of so many bytes went to the wire, its header not counted.
    Frame(usize),
    /// The wire did not take a frame, or it was none. The guest is not told: frames get lost.
    Dropped(Option<io::ErrorKind>),
    /// The guest has nothing to send.
    NoFrame,
    /// The guest has something meanwhile: try again.
    Again,
    /// The queue failed and is given up.
    GivenUp,
}

/// Moves one frame, if there is one.
pub(super) fn send(queue: &mut Served, wire: &File, io: &mut Immediate) -> Sent {
    let taken = queue.with(|queue| {
        let Some(chain) = queue.pop()? else {
            return Ok(if queue.arm()? { Sent::Again } else { Sent::NoFrame });
        };
        let frame = chain.readable(queue.memory())?;
        let sent = if frame.len() < HEADER_SIZE {
            Sent::Dropped(None)
        } else {
            match io.send(wire, frame.bufs()) {
                Ok(length) => Sent::Frame(length.saturating_sub(HEADER_SIZE)),
                Err(error) => Sent::Dropped(Some(error.kind())),
            }
        };
        queue.push(chain.head, 0)?;
        Ok(sent)
    });
    taken.unwrap_or(Sent::GivenUp)
}
