//! A buffered source that can be looked ahead in, counts, and remembers that it failed itself.

use std::io::{self, BufRead, Read};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How far ahead the first bytes of a member are looked at: a zstd frame's header is the longest, 18 bytes; gzip and xz
/// padding is looked at in this unit too.
pub(super) const PEEK_BYTES: usize = 512;

pub(super) struct Source<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    used: u64,
    failed: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            used: 0,
            failed: false,
        }
    }

    /// Bytes taken out of it.
    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    /// Whether an error came from the input, not from what reads it.
    pub(super) const fn failed(&self) -> bool {
        self.failed
    }

    /// What comes next, `count` bytes of it or all there are; `count` is at most [`PEEK_BYTES`].
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.end - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < count && self.fill()? {}
        }
        let all = self.buffer.get(self.start..self.end).unwrap_or_default();
        Ok(all.get(..count).unwrap_or(all))
    }

    /// Reads more behind what is there; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.input.read(room) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.fill()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.used += count as u64;
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What is not compressed is not copied twice.
        if self.start == self.end && buffer.len() >= BUFFER_BYTES {
            let result = self.input.read(buffer);
            self.failed |= result.is_err();
            self.used += *result.as_ref().unwrap_or(&0) as u64;
            return result;
        }
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}
