//! Buffers of one lane, used again and again, and the zeroes in them.

use guestmem::{IoBuf, IoBufError};

/// Size and alignment (on the disk) of a buffer, bytes: a cluster of most images, so that a buffer of zeroes is a cluster of
/// zeroes, and small enough that the allocator gives the same memory again.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// Alignment in memory, bytes: good for direct I/O everywhere.
const ALIGN_BYTES: usize = 4096;

/// Unit of the search for a byte that is not zero.
const LOOK_BYTES: usize = 4096;

const ZEROES: [u8; LOOK_BYTES] = [0; LOOK_BYTES];

/// Looked at first: data shows itself early, as a rule.
const GLANCE_BYTES: usize = 64;

/// Buffers that wait for their next use.
#[derive(Default)]
pub(crate) struct Pieces(Vec<IoBuf>);

impl Pieces {
    /// Buffers for `len` bytes at `offset` of a disk; all but the first begin at multiples of [`PIECE_BYTES`].
    pub(crate) fn take(&mut self, offset: u64, len: usize) -> Result<Vec<IoBuf>, IoBufError> {
        let mut bufs = Vec::with_capacity(len / PIECE_BYTES + 2);
        let mut left = len;
        let in_piece = usize::try_from(offset % PIECE_BYTES as u64).unwrap_or_default();
        let mut room = PIECE_BYTES - in_piece;
        while left > 0 {
            let count = left.min(room);
            bufs.push(match self.0.pop() {
                Some(buf) if count == PIECE_BYTES => buf,
                kept => {
                    self.0.extend(kept);
                    IoBuf::heap(count, ALIGN_BYTES)?
                }
            });
            left -= count;
            room = PIECE_BYTES;
        }
        Ok(bufs)
    }

    /// Takes buffers back; parts of one are of no more use.
    pub(crate) fn keep(&mut self, bufs: Vec<IoBuf>) {
        self.0.extend(bufs.into_iter().filter(|buf| buf.len() == PIECE_BYTES));
    }
}

/// Whether `count` bytes of `buf` from `offset` are zeroes. False beyond its end.
pub(crate) fn is_zero(buf: &IoBuf, offset: usize, count: usize) -> bool {
    let mut copy = [0_u8; LOOK_BYTES];
    // Compared as slices: many bytes at a time.
    let zeroes = |copy: &mut [u8], at: usize| buf.copy_to(at, copy).is_ok() && ZEROES.get(..copy.len()) == Some(copy);
    let glance = count.min(GLANCE_BYTES);
    if !copy.get_mut(..glance).is_some_and(|copy| zeroes(copy, offset)) {
        return false;
    }
    (glance..count).step_by(LOOK_BYTES).all(|start| {
        let len = (count - start).min(LOOK_BYTES);
        copy.get_mut(..len).is_some_and(|copy| zeroes(copy, offset + start))
    })
}

/// A part of a transfer that is zeroes, or is not.
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// The data; `None` for zeroes.
    pub(crate) data: Option<Vec<IoBuf>>,
}

/// Takes what was read from `offset` apart into data and zeroes, in units of `unit` bytes of the disk (a power of two), or leaves
/// it whole if that is 0.
pub(crate) fn runs(offset: u64, bufs: Vec<IoBuf>, unit: usize) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    let mut at = offset;
    for mut buf in bufs {
        while !buf.is_empty() {
            let (len, zero) = if unit == 0 {
                (buf.len(), false)
            } else {
                leading(&buf, at, unit)
            };
            let rest = buf.split_off(len);
            let piece = std::mem::replace(&mut buf, rest);
            let len = len as u64;
            match found.last_mut() {
                Some(Run {
                    len: so_far,
                    data: Some(list),
                    ..
                }) if !zero => {
                    *so_far += len;
                    list.push(piece);
                }
                Some(Run {
                    len: so_far,
                    data: None,
                    ..
                }) if zero => *so_far += len,
                _ => found.push(Run {
                    offset: at,
                    len,
                    data: (!zero).then(|| vec![piece]),
                }),
            }
            at += len;
        }
    }
    found
}

/// How many bytes at the start of `buf`, which is at `at` of the disk, are alike: zeroes or not.
fn leading(buf: &IoBuf, at: u64, unit: usize) -> (usize, bool) {
    let first = unit - usize::try_from(at % unit as u64).unwrap_or_default();
    let mut end = first.min(buf.len());
    let zero = is_zero(buf, 0, end);
    while end < buf.len() {
        let count = unit.min(buf.len() - end);
        if is_zero(buf, end, count) != zero {
            break;
        }
        end += count;
    }
    (end, zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_at_whole_pieces_of_the_disk_and_come_back() {
        let mut pieces = Pieces::default();
        let lens = |bufs: &[IoBuf]| bufs.iter().map(IoBuf::len).collect::<Vec<_>>();
        let bufs = pieces.take(65_024, 2 * PIECE_BYTES).unwrap();
        assert_eq!(lens(&bufs), [512, PIECE_BYTES, PIECE_BYTES - 512]);
        pieces.keep(bufs);
        assert_eq!(pieces.0.len(), 1);
        assert_eq!(lens(&pieces.take(0, PIECE_BYTES + 1).unwrap()), [PIECE_BYTES, 1]);
        assert!(pieces.0.is_empty());
    }

    #[test]
    fn zeroes_are_told_from_data_by_the_unit() {
        let mut bytes = vec![0; 20_480];
        bytes[4095 + 512] = 1;
        bytes[20_479] = 1;
        let cut = |at, unit, split: usize| {
            let mut head = IoBuf::from_bytes(&bytes).unwrap();
            let tail = head.split_off(split);
            let runs = runs(at, vec![head, tail], unit);
            let flat: Vec<u8> = runs
                .iter()
                .flat_map(|run| match &run.data {
                    Some(bufs) => bufs.iter().flat_map(IoBuf::to_vec).collect(),
                    None => vec![0; usize::try_from(run.len).unwrap()],
                })
                .collect();
            assert!(flat == bytes);
            runs.iter()
                .map(|run| (run.offset, run.len, run.data.is_some()))
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(0, 0, 512), [(0, 20_480, true)]);
        assert_eq!(
            cut(0, 4096, 8192),
            [
                (0, 4096, false),
                (4096, 4096, true),
                (8192, 8192, false),
                (16_384, 4096, true)
            ]
        );
        // At an offset of the disk that is in the middle of a unit.
        assert_eq!(cut(3584, 4096, 20_480)[..2], [(3584, 512, false), (4096, 4096, true)]);
    }
}
