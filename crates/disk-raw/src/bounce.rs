//! Copies for buffers that direct I/O can not use where they are.

use disk::{DiskError, DiskErrorKind, DiskOp};
use guestmem::IoBuf;

use crate::target::DirectRules;

/// Size of one copy, bytes: a request goes through it piece by piece, so that a guest can not make its monitor allocate much.
/// 128 KiB is what file systems and devices commonly move at once.
pub(crate) const PIECE_BYTES: usize = 128 << 10;

/// Alignment of what is allocated here, bytes: a page, good for every device.
const ALIGN_BYTES: usize = 4096;

/// Whether direct I/O takes these buffers as they are: every address aligned, every length whole sectors.
pub(crate) fn fits(rules: DirectRules, bufs: &[IoBuf]) -> bool {
    let aligned = |buf: &IoBuf| buf.as_mut_ptr().addr().is_multiple_of(rules.memory);
    let whole = |buf: &IoBuf| buf.len().is_multiple_of(rules.offset as usize);
    bufs.iter().all(|buf| buf.is_empty() || (aligned(buf) && whole(buf)))
}

/// A zeroed, aligned buffer for a request of `total` bytes, of at most [`PIECE_BYTES`].
pub(crate) fn piece(op: DiskOp, total: u64) -> Result<IoBuf, DiskError> {
    let len = usize::try_from(total).unwrap_or(usize::MAX).min(PIECE_BYTES);
    IoBuf::heap(len, ALIGN_BYTES).map_err(|error| DiskError::new(op, DiskErrorKind::Io).because(error))
}

/// A position in a list of buffers that moves forward as bytes are copied.
#[derive(Default)]
pub(crate) struct Cursor {
    index: usize,
    offset: usize,
}

impl Cursor {
    /// Copies the next `piece.len()` bytes of `bufs` into `piece`.
    pub(crate) fn gather(&mut self, bufs: &[IoBuf], piece: &IoBuf) {
        self.advance(bufs, piece.len(), |buf, at, done, count| {
            let source = buf.as_volatile_slice();
            let target = piece.as_volatile_slice();
            if let (Ok(source), Ok(target)) = (source.subslice(at, count), target.subslice(done, count)) {
                source.copy_to_volatile_slice(target);
            }
        });
    }

    /// Copies `piece` into the next `piece.len()` bytes of `bufs`.
    pub(crate) fn scatter(&mut self, bufs: &[IoBuf], piece: &IoBuf) {
        self.advance(bufs, piece.len(), |buf, at, done, count| {
            let source = piece.as_volatile_slice();
            let target = buf.as_volatile_slice();
            if let (Ok(source), Ok(target)) = (source.subslice(done, count), target.subslice(at, count)) {
                source.copy_to_volatile_slice(target);
                buf.mark_written(at + count);
            }
        });
    }

    /// Calls `copy(buffer, offset in it, offset in the piece, count)` for each run of the next `len` bytes.
    fn advance(&mut self, bufs: &[IoBuf], len: usize, mut copy: impl FnMut(&IoBuf, usize, usize, usize)) {
        let mut done = 0;
        while done < len
            && let Some(buf) = bufs.get(self.index)
        {
            let count = (len - done).min(buf.len() - self.offset);
            copy(buf, self.offset, done, count);
            done += count;
            self.offset += count;
            if self.offset == buf.len() {
                (self.index, self.offset) = (self.index + 1, 0);
            }
        }
    }
}

/// The pieces of a request, as offset and length in bytes.
pub(crate) fn pieces(offset: u64, total: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = PIECE_BYTES as u64;
    (0..total.div_ceil(step)).map(move |index| {
        let start = index * step;
        let len = usize::try_from((total - start).min(step)).unwrap_or(PIECE_BYTES);
        (offset.saturating_add(start), len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(lens: &[usize]) -> Vec<IoBuf> {
        lens.iter().map(|&len| IoBuf::heap(len, 1).unwrap()).collect()
    }

    #[test]
    fn gathers_and_scatters_across_uneven_buffers() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = [
            IoBuf::from_bytes(&bytes[..33]).unwrap(),
            IoBuf::from_bytes(&bytes[33..]).unwrap(),
        ];
        let target = list(&[1, 0, 49, 50]);
        let (mut from, mut to) = (Cursor::default(), Cursor::default());
        for len in [30, 10, 60] {
            let piece = IoBuf::heap(len, 1).unwrap();
            from.gather(&source, &piece);
            to.scatter(&target, &piece);
        }
        let copied: Vec<u8> = target.iter().flat_map(IoBuf::to_vec).collect();
        assert_eq!(copied, bytes);
    }

    #[test]
    fn pieces_cover_a_request_once() {
        let all: Vec<_> = pieces(512, 2 * PIECE_BYTES as u64 + 512).collect();
        let step = PIECE_BYTES as u64;
        assert_eq!(
            all,
            [(512, PIECE_BYTES), (512 + step, PIECE_BYTES), (512 + 2 * step, 512)]
        );
        assert_eq!(pieces(0, 0).count(), 0);
    }
}
