//! Reading fields from bytes that anybody may have written.

/// Why bytes are not the fields of a section.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// They end too early.
    #[error("it ends {missing} bytes too early")]
    Truncated {
        /// How many more are needed for the next field.
        missing: usize,
    },
    /// There are more than the fields take.
    #[error("{count} bytes are left over behind its last field")]
    Leftover {
        /// How many.
        count: usize,
    },
    /// A field has a value that its type does not have.
    #[error("its byte {offset} is none of {expected}")]
    BadValue {
        /// Where, counted from its first byte.
        offset: usize,
        /// What could be there.
        expected: &'static str,
    },
}

/// Takes fields one by one from the front of bytes.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Decoder<'a> {
    /// At the first of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            total: bytes.len(),
        }
    }

    /// Bytes that are not taken yet.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Bytes that are taken.
    pub const fn offset(&self) -> usize {
        self.total - self.rest.len()
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            let missing = count - self.rest.len();
            return Err(DecodeError::Truncated { missing });
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let missing = N.saturating_sub(self.rest.len());
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated { missing });
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// A count of elements of at least `least` bytes each: never more than what is left can hold.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        let needed = count.saturating_mul(least);
        if needed > self.remaining() {
            let missing = needed - self.remaining();
            return Err(DecodeError::Truncated { missing });
        }
        Ok(count)
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Leftover { count }),
        }
    }

    /// The error for the byte that was taken last.
    pub(crate) const fn bad_value(&self, expected: &'static str) -> DecodeError {
        DecodeError::BadValue {
            offset: self.offset().saturating_sub(1),
            expected,
        }
    }
}
