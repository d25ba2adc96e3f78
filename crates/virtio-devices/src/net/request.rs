//! What a driver asks on the control queue, parsed (virtio 1.2 §5.1.6.5).

use virtio::{Chain, RingError, Scatter, VirtQueue};

/// Class of commands about queue pairs.
const CLASS_MQ: u8 = 4;
/// Command: use so many pairs.
const MQ_PAIRS_SET: u8 = 0;
/// Answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ack {
    Ok = 0,
    Error = 1,
}

/// A command: how many pairs to use, or nothing this card knows; and where its one-byte answer goes.
pub(super) struct Command {
    pub(super) head: u16,
    pub(super) pairs: Option<u16>,
    pub(super) ack: Scatter,
}

impl Command {
    /// Next command of the control queue. Fails where there is no place for an answer.
    pub(super) fn next(queue: &mut VirtQueue) -> Result<Option<Self>, RingError> {
        let Some(chain) = queue.pop()? else { return Ok(None) };
        let Chain { head, .. } = chain;
        let mut from = chain.readable(queue.memory())?;
        let mut into = chain.writable(queue.memory())?;
        let ack = into.take_back(1).ok_or(RingError::BadChain {
            head,
            why: "has no room for an answer",
        })?;
        let mut bytes = [0; 4];
        let pairs = match (from.take_front(&mut bytes), bytes) {
            (Some(()), [CLASS_MQ, MQ_PAIRS_SET, low, high]) => Some(u16::from_le_bytes([low, high])),
            _ => None,
        };
        Ok(Some(Self { head, pairs, ack }))
    }
}
