//! One member of a compressed stream: a gzip member, an xz or bzip2 stream, a zstd frame.

use std::io::{self, BufRead, Read};

use bzip2::bufread::BzDecoder;
use disk::probe::{Format, Packing, Sample};
use flate2::bufread::GzDecoder;
use liblzma::stream::{Action, Status, Stream};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::source::{PEEK_BYTES, Source};
use super::{DecompressError, DecompressLimits, zstd_frame};

/// Padding between and behind xz streams comes in this unit, bytes (.xz file format §2.2).
const XZ_PADDING: u64 = 4;

/// What a stream that begins so is packed with, as far as this can be taken off here or has to be refused.
pub(super) fn packing(start: &[u8]) -> Option<Packing> {
    // Judged alone: behind the compression's mark may be any other's.
    match Sample::new(start, &[], u64::MAX).format() {
        Format::Packed(Packing::Tar) => None,
        Format::Packed(packing) => Some(packing),
        _ => zstd_frame::begins(start).then_some(Packing::Zstd),
    }
}

pub(super) enum Member<R> {
    Plain(Source<R>),
    Gzip(Box<GzDecoder<Source<R>>>),
    Bzip2(BzDecoder<Source<R>>),
    Xz(Box<Coder<Stream, R>>),
    Zstd(Box<Coder<Decoder<'static>, R>>),
}

/// A decoder that takes and gives pieces.
pub(super) struct Coder<D, R> {
    decoder: D,
    source: Source<R>,
    finished: bool,
    limit_bytes: u64,
}

impl<R: Read> Member<R> {
    pub(super) fn begin(
        packing: Option<Packing>,
        mut source: Source<R>,
        limits: &DecompressLimits,
    ) -> Result<Self, DecompressError> {
        let limit_bytes = limits.max_memory_bytes;
        let no_decoder = |error| DecompressError::Damaged {
            packed_bytes: 0,
            source: error,
        };
        Ok(match packing {
            Some(Packing::Gzip) => Self::Gzip(Box::new(GzDecoder::new(source))),
            Some(Packing::Bzip2) => Self::Bzip2(BzDecoder::new(source)),
            Some(Packing::Xz) => {
                let decoder = Stream::new_stream_decoder(limit_bytes, 0).map_err(|error| no_decoder(error.into()))?;
                Self::Xz(Box::new(Coder::new(decoder, source, limit_bytes)))
            }
            Some(Packing::Zstd) => {
                check_window(&mut source, limit_bytes)?;
                let mut decoder = Decoder::new().map_err(no_decoder)?;
                let log = limit_bytes
                    .max(1 << 10)
                    .checked_next_power_of_two()
                    .map_or(31, u64::ilog2)
                    .min(31);
                decoder
                    .set_parameter(DParameter::WindowLogMax(log))
                    .map_err(no_decoder)?;
                Self::Zstd(Box::new(Coder::new(decoder, source, limit_bytes)))
            }
            Some(packing) => return Err(DecompressError::Unsupported(packing)),
            None => Self::Plain(source),
        })
    }

    /// What comes out next; 0 at the member's end. `buffer` is not empty.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, DecompressError> {
        loop {
            let result = match self {
                Self::Plain(source) => return source.read(buffer).map_err(DecompressError::Input),
                Self::Gzip(decoder) => decoder.read(buffer),
                Self::Bzip2(decoder) => decoder.read(buffer),
                Self::Xz(coder) => return coder.read_xz(buffer),
                Self::Zstd(coder) => return coder.read_zstd(buffer),
            };
            match result {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(self.source(), error)),
            }
        }
    }

    /// Bytes of the source used.
    pub(super) fn used(&self) -> u64 {
        self.source().used()
    }

    fn source(&self) -> &Source<R> {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Bzip2(decoder) => decoder.get_ref(),
            Self::Xz(coder) => &coder.source,
            Self::Zstd(coder) => &coder.source,
        }
    }

    /// The member behind this one, which has ended; `None` at the end of the source.
    pub(super) fn next(
        self,
        packing: Option<Packing>,
        limits: &DecompressLimits,
    ) -> Result<Option<Self>, DecompressError> {
        let mut source = match self {
            Self::Plain(_) => return Ok(None),
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Bzip2(decoder) => decoder.into_inner(),
            Self::Xz(coder) => coder.source,
            Self::Zstd(mut coder) => {
                // Its decoder goes on: frames may be many and small.
                if !coder.begin_frame(limits.max_memory_bytes)? {
                    return Ok(None);
                }
                return Ok(Some(Self::Zstd(coder)));
            }
        };
        if matches!(packing, Some(Packing::Gzip | Packing::Xz)) {
            pass_padding(&mut source, packing)?;
        }
        let start = source.peek(PEEK_BYTES).map_err(DecompressError::Input)?;
        if start.is_empty() {
            return Ok(None);
        }
        if self::packing(start) != packing {
            return Err(DecompressError::TrailingGarbage {
                packed_bytes: source.used(),
            });
        }
        Self::begin(packing, source, limits).map(Some)
    }
}

/// Zeros behind a member: tapes pad gzip, and xz has padding of its own.
fn pass_padding<R: Read>(source: &mut Source<R>, packing: Option<Packing>) -> Result<(), DecompressError> {
    let before = source.used();
    loop {
        let there = source.fill_buf().map_err(DecompressError::Input)?;
        let zeros = there.iter().take_while(|&&byte| byte == 0).count();
        let all = zeros == there.len();
        source.consume(zeros);
        if zeros == 0 || !all {
            break;
        }
    }
    if packing == Some(Packing::Xz) && !(source.used() - before).is_multiple_of(XZ_PADDING) {
        return Err(DecompressError::TrailingGarbage { packed_bytes: before });
    }
    Ok(())
}

fn check_window<R: Read>(source: &mut Source<R>, limit_bytes: u64) -> Result<(), DecompressError> {
    let start = source.peek(PEEK_BYTES).map_err(DecompressError::Input)?;
    let window = zstd_frame::window_bytes(start);
    match window {
        Some(window) if window > limit_bytes => Err(DecompressError::Memory { limit_bytes }),
        Some(_) => Ok(()),
        None => Err(truncated(source)),
    }
}

fn truncated<R: Read>(source: &Source<R>) -> DecompressError {
    DecompressError::Truncated {
        packed_bytes: source.used(),
    }
}

fn failure<R: Read>(source: &Source<R>, error: io::Error) -> DecompressError {
    if source.failed() {
        return DecompressError::Input(error);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(source),
        _ => DecompressError::Damaged {
            packed_bytes: source.used(),
            source: error,
        },
    }
}

impl<D, R: Read> Coder<D, R> {
    const fn new(decoder: D, source: Source<R>, limit_bytes: u64) -> Self {
        Self {
            decoder,
            source,
            finished: false,
            limit_bytes,
        }
    }
}

impl<R: Read> Coder<Stream, R> {
    fn read_xz(&mut self, buffer: &mut [u8]) -> Result<usize, DecompressError> {
        while !self.finished {
            let input = self.source.fill_buf().map_err(DecompressError::Input)?;
            let ended = input.is_empty();
            let action = if ended { Action::Finish } else { Action::Run };
            let (in_before, out_before) = (self.decoder.total_in(), self.decoder.total_out());
            let result = self.decoder.process(input, buffer, action);
            let used = usize::try_from(self.decoder.total_in() - in_before).unwrap_or(usize::MAX);
            let given = usize::try_from(self.decoder.total_out() - out_before).unwrap_or(usize::MAX);
            self.source.consume(used);
            match result {
                Ok(Status::StreamEnd) => self.finished = true,
                Ok(Status::MemNeeded) if ended => return Err(truncated(&self.source)),
                Ok(_) if ended && given == 0 => return Err(truncated(&self.source)),
                Ok(_) => {}
                Err(liblzma::stream::Error::MemLimit) => {
                    let limit_bytes = self.limit_bytes;
                    return Err(DecompressError::Memory { limit_bytes });
                }
                Err(error) => return Err(failure(&self.source, error.into())),
            }
            if given > 0 {
                return Ok(given);
            }
        }
        Ok(0)
    }
}

impl<R: Read> Coder<Decoder<'static>, R> {
    fn read_zstd(&mut self, buffer: &mut [u8]) -> Result<usize, DecompressError> {
        while !self.finished {
            let input = self.source.fill_buf().map_err(DecompressError::Input)?;
            let ended = input.is_empty();
            let mut from = InBuffer::around(input);
            let mut to = OutBuffer::around(&mut *buffer);
            let result = self.decoder.run(&mut from, &mut to);
            let (used, given) = (from.pos(), to.pos());
            self.source.consume(used);
            match result {
                Ok(0) => self.finished = true,
                Ok(_) if ended && given == 0 => return Err(truncated(&self.source)),
                Ok(_) => {}
                Err(error) => return Err(failure(&self.source, error)),
            }
            if given > 0 {
                return Ok(given);
            }
        }
        Ok(0)
    }

    /// Starts the next frame; false at the end of the source.
    fn begin_frame(&mut self, limit_bytes: u64) -> Result<bool, DecompressError> {
        let start = self.source.peek(PEEK_BYTES).map_err(DecompressError::Input)?;
        if start.is_empty() {
            return Ok(false);
        }
        if !zstd_frame::begins(start) {
            return Err(DecompressError::TrailingGarbage {
                packed_bytes: self.source.used(),
            });
        }
        check_window(&mut self.source, limit_bytes)?;
        self.finished = false;
        self.decoder.reinit().map_err(|error| failure(&self.source, error))?;
        Ok(true)
    }
}
