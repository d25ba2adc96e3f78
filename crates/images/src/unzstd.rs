//! Zstandard frames, one after the other (RFC 8878 §3.1), that can be entered again between two of them.
//!
//! Within a frame nothing is known of the decoder's state, so a layer that is one frame, as most are, is entered at its beginning.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::inflow::{Inflow, Place};

/// Largest window of a frame, as a power of two: 64 MiB. What builds images takes 8 MiB at most, level 19 of `zstd` too.
const WINDOW_LOG_MAX: u32 = 26;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Before the first frame, which has to be there.
    First,
    Inside,
    Between,
    End,
}

/// The decoder.
pub(crate) struct Unzstd<B> {
    input: B,
    decoder: Decoder<'static>,
    step: Step,
}

impl<B: BufRead> Unzstd<B> {
    /// Fails without memory.
    pub(crate) fn new(input: B) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self {
            input,
            decoder,
            step: Step::First,
        })
    }

    /// Goes on between two frames; `input` was resumed there. Fails without memory.
    pub(crate) fn resume(input: B) -> io::Result<Self> {
        Ok(Self {
            step: Step::Between,
            ..Self::new(input)?
        })
    }
}

impl<R: Read> Unzstd<Inflow<R>> {
    /// Where to go on, if the caller has everything that came out of whole frames.
    pub(crate) fn place(&self) -> Option<Place> {
        (self.step == Step::Between).then(|| self.input.place())
    }

    /// Compressed bytes used.
    pub(crate) const fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// What lies under it; for reading on to the end of the blob.
    pub(crate) fn into_inner(self) -> Inflow<R> {
        self.input
    }
}

impl<B: BufRead> Read for Unzstd<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Each turn uses input, gives output or ends the loop.
        while self.step != Step::End && !buffer.is_empty() {
            let there = self.input.fill_buf()?;
            let is_end = there.is_empty();
            match self.step {
                Step::First if is_end => return Err(io::ErrorKind::UnexpectedEof.into()),
                Step::Between if is_end => {
                    self.step = Step::End;
                    break;
                }
                _ => {}
            }
            let (mut from, mut to) = (InBuffer::around(there), OutBuffer::around(&mut *buffer));
            let wants = self.decoder.run(&mut from, &mut to)?;
            let (used, made) = (from.pos(), to.pos());
            self.input.consume(used);
            // Skippable frames are passed over by the decoder.
            self.step = if wants == 0 { Step::Between } else { Step::Inside };
            if made > 0 {
                return Ok(made);
            }
            if is_end && self.step == Step::Inside {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
#[path = "unzstd_tests.rs"]
mod tests;
