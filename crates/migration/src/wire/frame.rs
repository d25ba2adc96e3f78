//! Frames: length, kind, checksum, payload.

use std::io::{self, Read};

use super::KIND_PAGES;
use crate::page_set::CHUNK_BYTES;
use crate::section::{SECTION_BYTES_MAX, SECTION_NAME_MAX};

/// Bytes of a page frame's payload in front of its raw part.
pub const PAGES_PREFIX_BYTES: usize = 36;
/// Longest payload of one: all raw, with room for what a delta can be longer than nothing.
const PAGES_PAYLOAD_MAX: usize = PAGES_PREFIX_BYTES + CHUNK_BYTES + 64 * 2;
/// Bytes in front of each payload.
pub const FRAME_HEADER_BYTES: usize = 12;
/// Memory for a payload grows by as much as this ahead of the bytes that arrived, so that a length alone costs nothing.
const READ_STEP_BYTES: usize = 512 << 10;

/// Why what arrived is of no use. The stream is of no use afterwards either.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended between two frames.
    #[error("the peer closed the stream")]
    Closed,
    /// The stream failed, or ended inside a frame.
    #[error("the stream failed")]
    Io(#[source] io::Error),
    /// No such kind of frame.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Longer than its kind may be.
    #[error("a frame of kind {kind} with {bytes} bytes; at most {most} are taken")]
    TooLong {
        /// The kind.
        kind: u8,
        /// The length it said.
        bytes: u32,
        /// The most for this kind.
        most: usize,
    },
    /// The checksum is another.
    #[error("the checksum of a frame of kind {kind} is wrong")]
    Checksum {
        /// The kind.
        kind: u8,
    },
    /// The payload is not what its kind has.
    #[error("a frame of kind {kind} is not understood")]
    Malformed {
        /// The kind.
        kind: u8,
    },
}

/// The longest payload of a kind, or none for a kind that does not exist.
fn longest(kind: u8) -> Option<usize> {
    Some(match kind {
        1 => 4096,
        2 | 4 | 5 | 12 | 13 => 64,
        3 | 16 => 1024,
        6 => 0,
        KIND_PAGES => PAGES_PAYLOAD_MAX,
        8 | 9 => 4,
        10 => SECTION_BYTES_MAX + SECTION_NAME_MAX + 6,
        11 => 64 << 10,
        14 | 15 | 18 => 32,
        17 => 8 << 10,
        _ => return None,
    })
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(head);
    hash.update(payload);
    hash.finalize()
}

/// Writes the header into the first [`FRAME_HEADER_BYTES`] of `frame`, whose rest is the payload.
pub(super) fn seal_frame(frame: &mut [u8], kind: u8) {
    let Some((header, payload)) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>() else {
        return;
    };
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut head = [0; 8];
    if let Some((size, rest)) = head.split_first_chunk_mut::<4>() {
        *size = length.to_le_bytes();
        rest.fill(0);
        if let Some(first) = rest.first_mut() {
            *first = kind;
        }
    }
    let sum = checksum(&head, payload).to_le_bytes();
    for (to, from) in header.iter_mut().zip(head.iter().chain(&sum)) {
        *to = *from;
    }
}

/// Reads the next frame: its kind, and its payload into `payload`.
///
/// The kind exists, the length is within its limit and the checksum is right when this returns `Ok`. `payload` never grows
/// much beyond what really arrived.
pub fn read_frame(stream: &mut impl Read, payload: &mut Vec<u8>) -> Result<u8, WireError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    let (first, rest) = header.split_at_mut(1);
    loop {
        match stream.read(first) {
            Ok(0) => return Err(WireError::Closed),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(WireError::Io(error)),
        }
    }
    stream.read_exact(rest).map_err(WireError::Io)?;
    let [l0, l1, l2, l3, kind, z0, z1, z2, c0, c1, c2, c3] = header;
    let bytes = u32::from_le_bytes([l0, l1, l2, l3]);
    let most = longest(kind).ok_or(WireError::Kind(kind))?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if length > most {
        return Err(WireError::TooLong { kind, bytes, most });
    }
    if [z0, z1, z2] != [0; 3] {
        return Err(WireError::Malformed { kind });
    }
    let mut filled = 0;
    while filled < length {
        let step = (length - filled).min(READ_STEP_BYTES);
        if payload.len() < filled + step {
            payload.resize(filled + step, 0);
        }
        let Some(room) = payload.get_mut(filled..filled + step) else {
            break;
        };
        stream.read_exact(room).map_err(WireError::Io)?;
        filled += step;
    }
    payload.truncate(length);
    let [head @ .., _, _, _, _] = &header;
    if checksum(head, payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(WireError::Checksum { kind });
    }
    Ok(kind)
}
