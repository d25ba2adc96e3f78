//! The page frame: up to 64 pages of one chunk.

use super::KIND_PAGES;
use super::cursor::Cursor;
use super::frame::{FRAME_HEADER_BYTES, PAGES_PREFIX_BYTES, WireError, seal_frame};
use crate::delta::{self, DELTA_BYTES_MAX};
use crate::page_set::PAGE_BYTES;

/// Where the raw part begins in a frame with its header.
pub(crate) const RAW_AT: usize = FRAME_HEADER_BYTES + PAGES_PREFIX_BYTES;

/// A page frame as read: well-formed, its parts not yet unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFrame<'a> {
    /// Which 64 pages.
    pub chunk: u64,
    /// Pages that are all zero.
    pub zero: u64,
    /// Pages sent whole. The three masks have no page in common.
    pub raw: u64,
    /// Pages sent as a delta.
    pub delta: u64,
    raw_part: &'a [u8],
    deltas: &'a [u8],
}

/// Why the parts of a page frame can not be unpacked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PagesError {
    /// Not zstd, or not of the length that the mask says.
    #[error("compressed pages of chunk {0} do not unpack to their pages")]
    Compressed(u64),
    /// A delta that reaches beyond its page.
    #[error("a delta of page {0} does not fit its page")]
    Delta(u64),
}

impl<'a> PageFrame<'a> {
    /// Reads the payload of a frame of kind [`KIND_PAGES`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(KIND_PAGES, payload);
        let chunk = cursor.u64()?;
        let (zero, raw, delta) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let length = usize::try_from(cursor.u32()?).unwrap_or(usize::MAX);
        let whole = raw.count_ones() as usize * PAGE_BYTES;
        if (zero & raw) | (zero & delta) | (raw & delta) != 0
            || length > whole
            || (length == 0) != (whole == 0)
            || zero | raw | delta == 0
        {
            return Err(cursor.malformed());
        }
        let raw_part = cursor.take(length)?;
        let deltas = cursor.rest();
        let mut check = Cursor::new(KIND_PAGES, deltas);
        for _ in 0..delta.count_ones() {
            let length = usize::from(check.u16()?);
            if length > DELTA_BYTES_MAX {
                return Err(check.malformed());
            }
            check.take(length)?;
        }
        check.end()?;
        Ok(Self {
            chunk,
            zero,
            raw,
            delta,
            raw_part,
            deltas,
        })
    }

    /// All pages of the frame.
    pub fn all(&self) -> u64 {
        self.zero | self.raw | self.delta
    }

    /// True when the raw part is compressed.
    pub fn is_compressed(&self) -> bool {
        self.raw_part.len() < self.raw.count_ones() as usize * PAGE_BYTES
    }

    /// The raw pages, one after the other; `room` is used when they have to be unpacked.
    pub fn raw_pages<'r>(&self, room: &'r mut Vec<u8>) -> Result<&'r [u8], PagesError>
    where
        'a: 'r,
    {
        if !self.is_compressed() {
            return Ok(self.raw_part);
        }
        let whole = self.raw.count_ones() as usize * PAGE_BYTES;
        room.resize(whole, 0);
        match zstd::bulk::decompress_to_buffer(self.raw_part, room.as_mut_slice()) {
            Ok(unpacked) if unpacked == whole => Ok(room),
            _ => Err(PagesError::Compressed(self.chunk)),
        }
    }

    /// Calls `each` with every delta and the bit of its page, in order.
    pub fn for_each_delta<E>(&self, mut each: impl FnMut(u32, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut left = self.deltas;
        for bit in bits(self.delta) {
            let Some((length, rest)) = left.split_first_chunk::<2>() else {
                break;
            };
            let Some((delta, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else {
                break;
            };
            each(bit, delta)?;
            left = rest;
        }
        Ok(())
    }

    /// Unpacks everything and applies every delta to a zero page: what a fuzz target does.
    pub fn unpack_all(&self) -> Result<(), PagesError> {
        self.raw_pages(&mut Vec::new())?;
        let mut page = [0; PAGE_BYTES];
        self.for_each_delta(|bit, bytes| {
            let number = self.chunk.saturating_mul(64).saturating_add(u64::from(bit));
            delta::apply(bytes, &mut page).map_err(|_| PagesError::Delta(number))
        })
    }
}

/// The bits of a mask, lowest first.
pub(crate) fn bits(mask: u64) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let bit = left.trailing_zeros();
        left &= left.checked_sub(1)?;
        Some(bit)
    })
}

/// Makes a frame of `frame`, which holds the raw part from [`RAW_AT`] on and the deltas after it: writes what is in front.
pub(crate) fn finish_pages(frame: &mut [u8], chunk: u64, masks: [u64; 3], raw_bytes: usize) {
    let [zero, raw, delta] = masks;
    let raw_bytes = u32::try_from(raw_bytes).unwrap_or(u32::MAX);
    let fields = [chunk, zero, raw, delta]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .chain(raw_bytes.to_le_bytes());
    for (to, from) in frame.iter_mut().skip(FRAME_HEADER_BYTES).zip(fields) {
        *to = from;
    }
    seal_frame(frame, KIND_PAGES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::read_frame;

    fn frame(masks: [u64; 3], raw: &[u8], deltas: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; RAW_AT];
        frame.extend(raw);
        frame.extend(deltas);
        finish_pages(&mut frame, 5, masks, raw.len());
        frame
    }

    fn payload(frame: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        assert_eq!(read_frame(&mut &frame[..], &mut payload).unwrap(), KIND_PAGES);
        payload
    }

    #[test]
    fn pages_come_back() {
        let raw = vec![7; PAGE_BYTES];
        let payload = payload(&frame([1, 2, 4], &raw, &[4, 0, 0, 0, 1, 0, 9][..]));
        assert!(PageFrame::decode(&payload).is_err(), "the delta is cut short");
        let payload = self::payload(&frame([1, 2, 4], &raw, &[5, 0, 0, 0, 1, 0, 9]));
        let pages = PageFrame::decode(&payload).unwrap();
        assert_eq!((pages.chunk, pages.all(), pages.is_compressed()), (5, 7, false));
        assert_eq!(pages.raw_pages(&mut Vec::new()).unwrap(), raw);
        pages.unpack_all().unwrap();
    }

    #[test]
    fn masks_have_nothing_in_common_and_lengths_fit() {
        for (masks, raw) in [
            ([1, 1, 0], PAGE_BYTES),
            ([0, 0, 0], 0),
            ([0, 1, 0], 0),
            ([0, 1, 0], PAGE_BYTES + 1),
            ([1, 0, 0], 1),
        ] {
            let payload = payload(&frame(masks, &vec![0; raw], &[]));
            assert!(PageFrame::decode(&payload).is_err(), "{masks:?} {raw}");
        }
        let payload = payload(&frame([0, 1, 0], &[1, 2, 3], &[]));
        assert_eq!(
            PageFrame::decode(&payload).unwrap().unpack_all(),
            Err(PagesError::Compressed(5))
        );
    }

    #[test]
    fn bits_are_listed_in_order() {
        assert_eq!(bits(1 << 63 | 5).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(bits(0).count(), 0);
    }
}
