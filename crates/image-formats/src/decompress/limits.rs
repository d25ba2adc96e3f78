//! How much may come out, and what it costs.

use std::io;

use disk::probe::{Format, Packing};

/// Bounds on a decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecompressLimits {
    /// Most bytes that may come out.
    pub max_output_bytes: u64,
    /// Most bytes that may come out for each that went in. Counts beyond [`Self::ratio_from_bytes`] only: small images are mostly
    /// zeros.
    pub max_ratio: u64,
    /// Output from which on the ratio counts, bytes.
    pub ratio_from_bytes: u64,
    /// Most memory a stream may ask for: window or dictionary, bytes.
    pub max_memory_bytes: u64,
}

impl DecompressLimits {
    /// 1000 to 1 beyond 256 MiB; 72 MiB of memory, which is what `xz -9` needs.
    pub const fn up_to(max_output_bytes: u64) -> Self {
        Self {
            max_output_bytes,
            max_ratio: 1000,
            ratio_from_bytes: 256 << 20,
            max_memory_bytes: 72 << 20,
        }
    }
}

/// Why a stream is not decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The source failed.
    #[error("the compressed image can not be read")]
    Input(#[source] io::Error),
    /// A way of packing that is not supported.
    #[error("the image is packed as {}, which is not supported; unpack it first", Format::Packed(*.0))]
    Unsupported(Packing),
    /// Too much comes out.
    #[error("the image unpacks to more than the {limit_bytes} bytes allowed")]
    Output {
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// Too much comes out of too little.
    #[error(
        "the image unpacks {packed_bytes} bytes to {unpacked_bytes}, more than {max_ratio} to 1; unpack it before the import"
    )]
    Ratio {
        /// Bytes used.
        packed_bytes: u64,
        /// Bytes that came out.
        unpacked_bytes: u64,
        /// What is allowed.
        max_ratio: u64,
    },
    /// It takes too much memory.
    #[error(
        "the image needs more than the {limit_bytes} bytes of memory allowed to unpack; pack it with a smaller window"
    )]
    Memory {
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// It ends within a member.
    #[error("the compressed image ends too early after {packed_bytes} bytes; it was cut short")]
    Truncated {
        /// Bytes used.
        packed_bytes: u64,
    },
    /// It makes no sense, or a checksum is wrong.
    #[error("the compressed image is damaged near byte {packed_bytes}")]
    Damaged {
        /// Bytes used.
        packed_bytes: u64,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// Something follows that is no part of it.
    #[error("something else follows the compressed image from byte {packed_bytes} on")]
    TrailingGarbage {
        /// Where, bytes.
        packed_bytes: u64,
    },
}

impl DecompressError {
    /// A stable name for programs; the crate documents them.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Input(_) => "source_unreadable",
            Self::Unsupported(_) => "compression_unsupported",
            Self::Output { .. } => "output_beyond_limit",
            Self::Ratio { .. } => "ratio_beyond_limit",
            Self::Memory { .. } => "memory_beyond_limit",
            Self::Truncated { .. } => "compressed_truncated",
            Self::Damaged { .. } => "compressed_damaged",
            Self::TrailingGarbage { .. } => "trailing_garbage",
        }
    }

    /// The error behind one that [`crate::Decompress`] returned from a read; `None` for one of its source.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Input(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Counts, and compares with the limits.
pub(super) struct Meter {
    limits: DecompressLimits,
    given: u64,
    used: u64,
}

impl Meter {
    pub(super) const fn new(limits: DecompressLimits) -> Self {
        Self {
            limits,
            given: 0,
            used: 0,
        }
    }

    pub(super) const fn given(&self) -> u64 {
        self.given
    }

    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    pub(super) const fn limits(&self) -> &DecompressLimits {
        &self.limits
    }

    pub(super) const fn note(&mut self, used: u64) {
        self.used = used;
    }

    /// How much may be asked for at once: one byte more than allowed shows that there is more.
    pub(super) fn room(&self) -> usize {
        let left = self
            .limits
            .max_output_bytes
            .saturating_sub(self.given)
            .saturating_add(1);
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    pub(super) fn count(&mut self, count: usize, used: u64, packed: bool) -> Result<(), DecompressError> {
        self.given = self.given.saturating_add(count as u64);
        self.used = used;
        let limits = &self.limits;
        if self.given > limits.max_output_bytes {
            return Err(DecompressError::Output {
                limit_bytes: limits.max_output_bytes,
            });
        }
        let beyond = packed && self.given > limits.ratio_from_bytes;
        if beyond && self.given / self.used.max(1) >= limits.max_ratio {
            return Err(DecompressError::Ratio {
                packed_bytes: self.used,
                unpacked_bytes: self.given,
                max_ratio: limits.max_ratio,
            });
        }
        Ok(())
    }
}
