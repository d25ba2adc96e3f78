//! The bytes of a blob as they come in: counted and hashed as they are used, so that reading can go on at any byte another time.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use crate::ImageDigest;

/// Bytes asked for at a time.
const READ_AHEAD: usize = 128 << 10;

/// A place in a blob, and the digest up to there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// Bytes before it.
    pub(crate) offset: u64,
    /// State of the SHA-256 over them.
    hasher: Vec<u8>,
}

/// A blob of known length being read.
pub(crate) struct Inflow<R> {
    input: R,
    buffer: Vec<u8>,
    /// Where what is not used yet begins in `buffer`, and where it ends.
    begin: usize,
    end: usize,
    hasher: sha2::Sha256,
    offset: u64,
    length: u64,
}

impl<R: Read> Inflow<R> {
    /// `input` gives all `length` bytes.
    pub(crate) fn new(input: R, length: u64) -> Self {
        Self {
            input,
            buffer: vec![0; READ_AHEAD],
            begin: 0,
            end: 0,
            hasher: sha2::Sha256::new(),
            offset: 0,
            length,
        }
    }

    /// `input` gives what follows `place`; none if that is no place.
    pub(crate) fn resume(input: R, length: u64, place: &Place) -> Option<Self> {
        let state = SerializedState::<sha2::Sha256>::try_from(place.hasher.as_slice()).ok()?;
        Some(Self {
            hasher: sha2::Sha256::deserialize(&state).ok()?,
            offset: place.offset,
            ..Self::new(input, length)
        })
    }

    /// Where reading has come to.
    pub(crate) fn place(&self) -> Place {
        Place {
            offset: self.offset,
            hasher: self.hasher.serialize().to_vec(),
        }
    }

    /// Bytes used so far.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// What is there, at least one byte; empty at the end of the blob. Input that ends before is an error of kind
    /// `ConnectionAborted`.
    pub(crate) fn fill(&mut self) -> io::Result<&[u8]> {
        while self.begin == self.end && self.offset < self.length {
            match self.input.read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(count) => (self.begin, self.end) = (0, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.buffer.get(self.begin..self.end).unwrap_or_default())
    }

    /// Marks the first `count` bytes of what is there as used.
    pub(crate) fn consume(&mut self, count: usize) {
        let to = self.end.min(self.begin.saturating_add(count));
        let used = self.buffer.get(self.begin..to).unwrap_or_default();
        self.hasher.update(used);
        self.offset += used.len() as u64;
        self.begin = to;
    }

    /// Reads what is left; returns the digest of all.
    pub(crate) fn finish(mut self) -> io::Result<ImageDigest> {
        loop {
            let count = self.fill()?.len();
            if count == 0 {
                return Ok(ImageDigest::finish(self.hasher));
            }
            self.consume(count);
        }
    }

    /// The next byte; an error of kind `UnexpectedEof` at the end of the blob.
    pub(crate) fn byte(&mut self) -> io::Result<u8> {
        let byte = self.fill()?.first().copied();
        self.consume(1);
        byte.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl<R: Read> Read for Inflow<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill()?;
        let count = there.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(there) {
            *to = *from;
        }
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Inflow<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()
    }

    fn consume(&mut self, count: usize) {
        Self::consume(self, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_at_any_byte_with_the_digest_of_all() {
        let bytes: Vec<u8> = (0..300_000)
            .map(|index| u8::try_from(index * 7 % 251).unwrap())
            .collect();
        for cut in [0, 1, 63, 64, 65, 131_072, 299_999, 300_000] {
            let mut first = Inflow::new(bytes.as_slice(), 300_000);
            let mut before = vec![0; cut];
            first.read_exact(&mut before).unwrap();
            let text = serde_json::to_string(&first.place()).unwrap();
            let place: Place = serde_json::from_str(&text).unwrap();
            assert_eq!(place.offset, cut as u64);
            let second = Inflow::resume(&bytes[cut..], 300_000, &place).unwrap();
            assert_eq!(second.finish().unwrap(), ImageDigest::of(&bytes), "{cut}");
        }
        let bad = Place {
            offset: 1,
            hasher: vec![1; 3],
        };
        assert!(Inflow::resume(bytes.as_slice(), 300_000, &bad).is_none());
    }

    #[test]
    fn input_that_ends_early_is_told_from_the_end_of_the_blob() {
        let error = Inflow::new([1; 10].as_slice(), 11).finish().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let mut whole = Inflow::new([1; 10].as_slice(), 10);
        whole.consume(10);
        assert_eq!(whole.fill().unwrap().len(), 10, "nothing was there to be used");
        whole.consume(10);
        assert_eq!(whole.byte().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
