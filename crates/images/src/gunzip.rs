//! A gzip stream that can be entered again between two of its blocks (RFC 1951, RFC 1952).
//!
//! Deflate itself is done by `miniz_oxide`, which tells where a block ends. What has to be known to go on there is the last
//! 32 KiB that came out, a few bits and the checksum so far: [`Junction`]. So an import of a compressed layer that was cut off
//! goes on without the compressed bytes having been kept.

use std::io::{self, Read};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};
use serde::{Deserialize, Serialize};

use crate::inflow::{Inflow, Place};

/// How far back deflate refers, bytes (RFC 1951 §2).
const WINDOW: usize = 32 << 10;
/// What comes out between two calls of the decoder, bytes: a power of two, several windows.
const RING: usize = 256 << 10;
/// First bytes of a gzip member, and the only method there is (RFC 1952 §2.3.1).
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Flags of a member's header.
const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;
const FLAGS_RESERVED: u8 = 0xe0;
const FLAGS: u32 = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;

/// What is needed to go on between two blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Junction {
    pub(crate) place: Place,
    bits: u8,
    bits_left: u8,
    /// Checksum and length of what came out of this member.
    crc: u32,
    given: u32,
    /// The last of what came out, hexadecimal digits.
    window: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Before a member; the first one has to be there.
    Header {
        first: bool,
    },
    Blocks,
    /// Between two blocks.
    Between,
    Trailer,
    End,
}

/// The decoder.
pub(crate) struct Gunzip<R> {
    input: Inflow<R>,
    oxide: Box<DecompressorOxide>,
    ring: Vec<u8>,
    /// What the caller has not got yet lies before this place in the ring.
    at: usize,
    pending: usize,
    crc: crc32fast::Hasher,
    given: u32,
    step: Step,
}

impl<R: Read> Gunzip<R> {
    pub(crate) fn new(input: Inflow<R>) -> Self {
        Self {
            input,
            oxide: Box::default(),
            ring: vec![0; RING],
            at: 0,
            pending: 0,
            crc: crc32fast::Hasher::new(),
            given: 0,
            step: Step::Header { first: true },
        }
    }

    /// Goes on behind a junction; `input` was resumed at its place. None if that is no junction.
    pub(crate) fn resume(input: Inflow<R>, junction: &Junction) -> Option<Self> {
        let window = unhex(&junction.window).filter(|window| window.len() == WINDOW)?;
        let state = BlockBoundaryState {
            num_bits: junction.bits_left,
            bit_buf: junction.bits,
            ..BlockBoundaryState::default()
        };
        if junction.bits_left > 7 {
            return None;
        }
        let mut ring = window;
        ring.resize(RING, 0);
        Some(Self {
            oxide: Box::new(DecompressorOxide::from_block_boundary_state(&state)),
            ring,
            at: WINDOW,
            crc: crc32fast::Hasher::new_with_initial(junction.crc),
            given: junction.given,
            step: Step::Between,
            ..Self::new(input)
        })
    }

    /// What is needed to go on from here, if the caller has everything that came out up to the end of a block.
    pub(crate) fn junction(&self) -> Option<Junction> {
        if self.pending > 0 || self.step != Step::Between {
            return None;
        }
        let state = self.oxide.block_boundary_state()?;
        let (new, old) = self.ring.split_at_checked(self.at)?;
        let window: Vec<u8> = old.iter().chain(new).copied().collect();
        Some(Junction {
            place: self.input.place(),
            bits: state.bit_buf,
            bits_left: state.num_bits,
            crc: self.crc.clone().finalize(),
            given: self.given,
            window: hex(window.get(RING - WINDOW..)?),
        })
    }

    /// Compressed bytes used.
    pub(crate) const fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// What lies under it; for reading on to the end of the blob.
    pub(crate) fn into_inner(self) -> Inflow<R> {
        self.input
    }

    /// Passes a member's header; false at the end of the stream.
    fn header(&mut self, first: bool) -> io::Result<bool> {
        if !first && self.input.fill()?.is_empty() {
            return Ok(false);
        }
        for expected in MAGIC {
            if self.input.byte()? != expected {
                return Err(bad(
                    "it is not compressed with gzip, or something else follows the compressed data",
                ));
            }
        }
        let flags = self.input.byte()?;
        if flags & FLAGS_RESERVED != 0 {
            return Err(bad("its gzip header has unknown flags"));
        }
        // Time, extra flags, system.
        self.pass(6)?;
        if flags & FLAG_EXTRA != 0 {
            let length = u16::from_le_bytes([self.input.byte()?, self.input.byte()?]);
            self.pass(length)?;
        }
        for flag in [FLAG_NAME, FLAG_COMMENT] {
            while flags & flag != 0 && self.input.byte()? != 0 {}
        }
        if flags & FLAG_HEADER_CRC != 0 {
            self.pass(2)?;
        }
        self.oxide.init();
        self.crc = crc32fast::Hasher::new();
        self.given = 0;
        Ok(true)
    }

    fn pass(&mut self, count: u16) -> io::Result<()> {
        (0..count).try_for_each(|_| self.input.byte().map(drop))
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        for byte in &mut bytes {
            *byte = self.input.byte()?;
        }
        Ok(u32::from_le_bytes(bytes))
    }

    fn trailer(&mut self) -> io::Result<()> {
        let (crc, length) = (self.number()?, self.number()?);
        if crc == self.crc.clone().finalize() && length == self.given {
            Ok(())
        } else {
            Err(bad("its gzip checksum is wrong"))
        }
    }

    /// Lets the decoder run once.
    fn inflate(&mut self) -> io::Result<()> {
        if self.at == RING {
            self.at = 0;
        }
        let input = self.input.fill()?;
        if input.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (status, used, made) = decompress(&mut self.oxide, input, &mut self.ring, self.at, FLAGS);
        self.input.consume(used);
        let fresh = self.ring.get(self.at..self.at + made).unwrap_or_default();
        self.crc.update(fresh);
        // The length in the trailer is modulo 2^32.
        self.given = self.given.wrapping_add(u32::try_from(made).unwrap_or_default());
        self.at += made;
        self.pending = made;
        self.step = match status {
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => Step::Blocks,
            TINFLStatus::BlockBoundary => Step::Between,
            TINFLStatus::Done => Step::Trailer,
            _ => return Err(bad("its compressed data is damaged")),
        };
        Ok(())
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Each turn uses input, or ends the loop: a block that is empty has a header of its own.
        while self.pending == 0 {
            match self.step {
                Step::Header { first } => {
                    self.step = if self.header(first)? { Step::Blocks } else { Step::End };
                }
                Step::Blocks | Step::Between => self.inflate()?,
                Step::Trailer => {
                    self.trailer()?;
                    self.step = Step::Header { first: false };
                }
                Step::End => return Ok(0),
            }
        }
        let from = self.at - self.pending;
        let there = self.ring.get(from..self.at).unwrap_or_default();
        let count = there.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        self.pending -= count;
        Ok(count)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| {
        DIGITS
            .get(usize::from(value & 15))
            .map_or('0', |&digit| char::from(digit))
    };
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "gunzip_tests.rs"]
mod tests;
