//! Reading and writing of fields. Reading never goes beyond the payload.

use super::WireError;

/// Longest text, bytes.
pub(super) const TEXT_MAX: usize = 512;

/// What is left of a payload.
pub(super) struct Cursor<'a> {
    left: &'a [u8],
    kind: u8,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { left: payload, kind }
    }

    pub(super) fn malformed(&self) -> WireError {
        WireError::Malformed { kind: self.kind }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, rest)) = self.left.split_first_chunk::<N>() else {
            return Err(self.malformed());
        };
        self.left = rest;
        Ok(*head)
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let Some((head, rest)) = self.left.split_at_checked(bytes) else {
            return Err(self.malformed());
        };
        self.left = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<String, WireError> {
        let length = usize::from(self.u16()?);
        if length > TEXT_MAX {
            return Err(self.malformed());
        }
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed())
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Leftovers are an error.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }
}

/// Appends a text, cut at a character to what fits.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    bytes.extend(u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
    bytes.extend(text.as_bytes());
}
