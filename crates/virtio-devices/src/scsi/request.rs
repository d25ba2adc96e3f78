//! What drivers ask on request queues, and how it is answered (virtio 1.2 §5.6.6.1).

use guestmem::GuestMemory;
use virtio::{Chain, RingError, Scatter};

use super::commands::CDB_SIZE;
use super::sense::{SENSE_SIZE, Sense};
use super::task::Verdict;

/// Bytes of a request before its CDB: address, tag, task attribute, priority, CRN.
const HEADER_SIZE: usize = 19;
/// Bytes of an answer before its sense data.
const ANSWER_SIZE: usize = 12;

/// CHECK CONDITION (SAM-5 §5.3.1); GOOD is zero.
const CHECK_CONDITION: u8 = 0x02;

/// How a request was handled, apart from what the unit says (virtio 1.2 §5.6.6.1, §5.6.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    /// Also: function complete.
    Ok = 0,
    Overrun = 1,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Failure = 9,
    FunctionSucceeded = 10,
    FunctionRejected = 11,
    IncorrectLun = 12,
}

/// The data of a request. One of the two is empty, or the request is refused.
pub(super) struct Data {
    pub(super) out: Scatter,
    pub(super) into: Scatter,
}

/// A command for a unit, as the driver sent it.
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) address: [u8; 8],
    pub(super) tag: u64,
    pub(super) cdb: [u8; CDB_SIZE],
    pub(super) data: Data,
    /// Where the answer goes.
    pub(super) answer: Scatter,
}

impl Request {
    /// `sizes` are those of CDBs and of sense data. Fails only where there is no place for an answer: no header, too little
    /// room, or buffers outside of guest memory.
    pub(super) fn parse(chain: &Chain, memory: &GuestMemory, sizes: (usize, usize)) -> Result<Self, RingError> {
        let bad = |why| RingError::BadChain { head: chain.head, why };
        let mut out = chain.readable(memory)?;
        let mut answer = chain.writable(memory)?;
        let mut header = [0; HEADER_SIZE];
        out.take_front(&mut header)
            .ok_or_else(|| bad("has no request header"))?;
        let (cdb_size, sense_size) = sizes;
        if out.len() < cdb_size {
            return Err(bad("has no whole CDB"));
        }
        let rest = out.split_off(cdb_size);
        let mut cdb = [0; CDB_SIZE];
        out.copy_to(&mut cdb);
        if answer.len() < ANSWER_SIZE + sense_size {
            return Err(bad("has no room for a response"));
        }
        let into = answer.split_off(ANSWER_SIZE + sense_size);
        let [a0, a1, a2, a3, a4, a5, a6, a7, t0, t1, t2, t3, t4, t5, t6, t7, ..] = header;
        Ok(Self {
            head: chain.head,
            address: [a0, a1, a2, a3, a4, a5, a6, a7],
            tag: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            cdb,
            data: Data { out: rest, into },
            answer,
        })
    }
}

/// Why a command ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// CHECK CONDITION.
    Check(Sense),
    /// The unit never saw it.
    Code(Code),
}

impl From<Sense> for Stop {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self::Code(match verdict {
            Verdict::Aborted => Code::Aborted,
            Verdict::Reset => Code::Reset,
        })
    }
}

/// Writes the answer to a command: `outcome` has the bytes moved, of `size` there was room for. Returns how many bytes were
/// written at the front of the writable buffers.
pub(super) fn respond(answer: &mut Scatter, outcome: Result<usize, Stop>, size: usize, is_in: bool) -> u32 {
    let moved = outcome.unwrap_or(0);
    let residual = u32::try_from(size.saturating_sub(moved)).unwrap_or(u32::MAX);
    let (code, sense) = match outcome {
        Ok(_) => (Code::Ok, None),
        Err(Stop::Check(sense)) => (Code::Ok, Some(sense)),
        Err(Stop::Code(code)) => (code, None),
    };
    let sense_size = answer.len().saturating_sub(ANSWER_SIZE).min(SENSE_SIZE);
    let told = sense.map_or(0, |_| u32::try_from(sense_size).unwrap_or(0));
    let mut bytes = [0; ANSWER_SIZE + SENSE_SIZE];
    let (head, tail) = bytes.split_at_mut(ANSWER_SIZE);
    let status = sense.map_or(0, |_| CHECK_CONDITION);
    let parts = [
        &told.to_le_bytes()[..],
        &residual.to_le_bytes(),
        &[0, 0, status, code as u8],
    ];
    let parts = parts.into_iter().flatten();
    head.iter_mut().zip(parts).for_each(|(place, &byte)| *place = byte);
    if let Some(sense) = sense {
        tail.copy_from_slice(&sense.bytes());
    }
    let written = answer.copy_from(&bytes);
    let data = if is_in { moved } else { 0 };
    // Data lies behind all the room for sense data, whether that was filled or not.
    let written = if data > 0 { answer.len() + data } else { written };
    u32::try_from(written).unwrap_or(u32::MAX)
}
