//! What a driver asks of a block device, parsed (virtio 1.2 §5.2.6).

use guestmem::GuestMemory;
use virtio::{Chain, RingError, Scatter};

use super::config::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_SIZE};

/// Bytes of the request header: type, reserved, sector.
const HEADER_SIZE: usize = 16;
/// Bytes of one range of a discard or write-zeroes.
const RANGE_SIZE: usize = 16;
/// Range flag: the space may be given back.
const FLAG_UNMAP: u32 = 1;
/// Bytes of the answer to [`Action::Identify`].
pub(super) const SERIAL_SIZE: usize = 20;

/// Answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// One range, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Action {
    Read {
        offset: u64,
        into: Scatter,
    },
    Write {
        offset: u64,
        from: Scatter,
    },
    Flush,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
    Identify {
        into: Scatter,
    },
    /// Nothing can be done: answer with this.
    Refuse(Status),
}

/// A request: what to do, and where its one-byte answer goes.
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) action: Action,
    pub(super) status: Scatter,
}

impl Request {
    /// Fails only where there is no place for an answer: no header, no status byte, or buffers outside of guest memory.
    pub(super) fn parse(chain: &Chain, memory: &GuestMemory) -> Result<Self, RingError> {
        let bad = |why| RingError::BadChain { head: chain.head, why };
        let mut from = chain.readable(memory)?;
        let mut into = chain.writable(memory)?;
        let status = into.take_back(1).ok_or_else(|| bad("has no room for a status"))?;
        let mut header = [0; HEADER_SIZE];
        from.take_front(&mut header)
            .ok_or_else(|| bad("has no request header"))?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let offset = u64::from_le_bytes(sector).checked_mul(SECTOR_SIZE);
        let action = match (u32::from_le_bytes([k0, k1, k2, k3]), offset) {
            (0 | 1, None) => Action::Refuse(Status::IoError),
            (0, Some(offset)) => Action::Read { offset, into },
            (1, Some(offset)) => Action::Write { offset, from },
            (4, _) => Action::Flush,
            (8, _) => Action::Identify { into },
            (11, _) => ranges(&from, 0).map_or_else(Action::Refuse, Action::Discard),
            (13, _) => ranges(&from, FLAG_UNMAP).map_or_else(Action::Refuse, Action::WriteZeroes),
            _ => Action::Refuse(Status::Unsupported),
        };
        let head = chain.head;
        Ok(Self { head, action, status })
    }
}

/// The ranges in the data of a request; `flags` are those it may have.
fn ranges(data: &Scatter, flags: u32) -> Result<Vec<Range>, Status> {
    let limit = RANGES_MAX as usize * RANGE_SIZE;
    if data.is_empty() || !data.len().is_multiple_of(RANGE_SIZE) || data.len() > limit {
        return Err(Status::IoError);
    }
    let mut bytes = vec![0; data.len()];
    data.copy_to(&mut bytes);
    let (chunks, _) = bytes.as_chunks::<RANGE_SIZE>();
    chunks.iter().map(|chunk| range(chunk, flags)).collect()
}

fn range(bytes: &[u8; RANGE_SIZE], allowed: u32) -> Result<Range, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if flags & !allowed != 0 {
        return Err(Status::Unsupported);
    }
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let offset = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).checked_mul(SECTOR_SIZE);
    match offset {
        Some(offset) if sectors <= RANGE_SECTORS_MAX => Ok(Range {
            offset,
            len: u64::from(sectors) * SECTOR_SIZE,
            unmap: flags & FLAG_UNMAP != 0,
        }),
        _ => Err(Status::IoError),
    }
}
