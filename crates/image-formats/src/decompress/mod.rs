//! One level of compression taken off a stream: gzip, xz, zstd, bzip2, told by their first bytes.
//!
//! [`Decompress`] reads as long as its source has members (frames, streams), and holds what comes out against limits. What is
//! not compressed passes unchanged, so it can stand in front of every import. What comes out may be compressed again:
//! [`crate::Inspector`] refuses that.

use std::io::{self, Read};

use disk::probe::Packing;

mod limits;
mod member;
mod source;
mod zstd_frame;

use limits::Meter;
pub use limits::{DecompressError, DecompressLimits};
use member::Member;
use source::Source;

/// A stream without its compression.
pub struct Decompress<R> {
    packing: Option<Packing>,
    /// What reads now; `None` after the end, or an error.
    member: Option<Member<R>>,
    meter: Meter,
}

impl<R: Read> Decompress<R> {
    /// Looks at the first bytes of `input`. Blocks.
    ///
    /// # Errors
    /// The input can not be read, or is packed in a way that is not supported.
    pub fn new(input: R, limits: DecompressLimits) -> Result<Self, DecompressError> {
        let mut source = Source::new(input);
        let start = source.peek(source::PEEK_BYTES).map_err(DecompressError::Input)?;
        let packing = member::packing(start);
        if let Some(packing @ (Packing::Lz4 | Packing::Zip)) = packing {
            return Err(DecompressError::Unsupported(packing));
        }
        let member = Member::begin(packing, source, &limits)?;
        Ok(Self {
            packing,
            member: Some(member),
            meter: Meter::new(limits),
        })
    }

    /// The compression that is taken off; `None`: there is none.
    pub const fn packing(&self) -> Option<Packing> {
        self.packing
    }

    /// Bytes given out so far.
    pub const fn unpacked_bytes(&self) -> u64 {
        self.meter.given()
    }

    /// Bytes of the source used so far.
    pub fn packed_bytes(&self) -> u64 {
        self.member.as_ref().map_or(self.meter.used(), Member::used)
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, DecompressError> {
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let count = member.read(buffer)?;
            if count > 0 {
                let used = member.used();
                self.meter.count(count, used, self.packing.is_some())?;
                return Ok(count);
            }
            let Some(member) = self.member.take() else { return Ok(0) };
            self.meter.note(member.used());
            self.member = member.next(self.packing, self.meter.limits())?;
        }
    }
}

impl<R: Read> Read for Decompress<R> {
    /// Errors of the source are passed on as they are; all others hold a [`DecompressError`], see [`DecompressError::of`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let room = self.meter.room().min(buffer.len());
        let result = self.step(buffer.get_mut(..room).unwrap_or_default());
        if result.is_err() {
            self.member = None;
        }
        result.map_err(DecompressError::into_io)
    }
}

#[cfg(test)]
mod tests;
