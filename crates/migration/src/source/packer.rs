//! Makes page frames of guest memory.

use std::collections::{HashMap, VecDeque};

use crate::delta;
use crate::machine::{Fault, SourceMemory};
use crate::page_set::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use crate::wire::{Offers, RAW_AT, finish_pages};

/// First round whose pages are kept for deltas: what is sent twice is likely to be sent again.
const KEEP_FROM_ROUND: u32 = 2;
/// Rounds in which a kept page is not sent before another may take its place.
const IDLE_ROUNDS: u32 = 2;
/// Level of zstd: the fastest that is not negative; a link that wants more is slower than any this is for.
const ZSTD_LEVEL: i32 = 1;

/// Packs chunks for one stream.
pub(super) struct Packer {
    frame: Vec<u8>,
    packed: Vec<u8>,
    deltas: Vec<u8>,
    sent: Option<Sent>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

/// A packed chunk.
pub(super) struct Packed<'a> {
    pub(super) frame: &'a [u8],
    pub(super) zero_pages: u32,
    pub(super) delta_pages: u32,
}

/// What was last sent of some pages: at most so many. A new page takes the place of one that was not sent for a while; while
/// all are in use it is not kept, as otherwise a working set that is larger than the cache would never find a page in it.
struct Sent {
    pages: HashMap<u64, Kept>,
    order: VecDeque<u64>,
    most: usize,
}

struct Kept {
    content: Box<[u8; PAGE_BYTES]>,
    /// When it was last sent.
    round: u32,
}

impl Sent {
    /// Appends the length and the delta of `page` to `out` if it has one; keeps what is sent now in every case.
    fn delta(&mut self, page: u64, new: &[u8; PAGE_BYTES], round: u32, out: &mut Vec<u8>) -> bool {
        if let Some(old) = self.pages.get_mut(&page) {
            let begin = out.len();
            out.extend([0; 2]);
            let fits = delta::encode(&old.content, new, out);
            let length = u16::try_from(out.len() - begin - 2).unwrap_or(0).to_le_bytes();
            old.content.copy_from_slice(new);
            old.round = round;
            if fits {
                for (to, from) in out.iter_mut().skip(begin).zip(length) {
                    *to = from;
                }
            } else {
                out.truncate(begin);
            }
            return fits;
        }
        if round >= KEEP_FROM_ROUND
            && let Some(mut content) = self.room(round)
        {
            content.copy_from_slice(new);
            self.pages.insert(page, Kept { content, round });
            self.order.push_back(page);
        }
        false
    }

    /// Room for one more page, if there is any: looks at the one that was looked at longest ago.
    fn room(&mut self, round: u32) -> Option<Box<[u8; PAGE_BYTES]>> {
        if self.pages.len() < self.most {
            return Some(Box::new([0; PAGE_BYTES]));
        }
        let oldest = self.order.pop_front()?;
        if self
            .pages
            .get(&oldest)
            .is_some_and(|kept| kept.round + IDLE_ROUNDS >= round)
        {
            self.order.push_back(oldest);
            return None;
        }
        self.pages.remove(&oldest).map(|kept| kept.content)
    }

    fn zero(&mut self, page: u64) {
        if let Some(old) = self.pages.get_mut(&page) {
            old.content.fill(0);
        }
    }
}

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    page.chunks_exact(256)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The runs of ones in a mask: first bit and how many.
fn runs(mask: u64) -> impl Iterator<Item = (u32, u32)> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = left.trailing_zeros();
        let count = (left >> first).trailing_ones();
        let run = if count == 64 {
            u64::MAX
        } else {
            ((1 << count) - 1) << first
        };
        left &= !run;
        Some((first, count))
    })
}

impl Packer {
    /// With what both sides agreed upon, and so many bytes for what was sent.
    pub(super) fn new(offers: Offers, cache_bytes: usize) -> Self {
        let most = cache_bytes / PAGE_BYTES;
        let sent = (offers.has(Offers::DELTA) && most > 0).then(|| Sent {
            pages: HashMap::new(),
            order: VecDeque::new(),
            most,
        });
        // Without memory for its tables nothing is compressed.
        let zstd = if offers.has(Offers::ZSTD) {
            zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()
        } else {
            None
        };
        Self {
            frame: vec![0; RAW_AT + CHUNK_BYTES],
            packed: Vec::new(),
            deltas: Vec::new(),
            sent,
            zstd,
        }
    }

    /// The frame with the pages of `mask`, which is not empty. `round` counts from 1; 0 is after the start, when nothing that
    /// was sent before can be built upon.
    pub(super) fn pack(
        &mut self,
        memory: &dyn SourceMemory,
        chunk: u64,
        mask: u64,
        round: u32,
    ) -> Result<Packed<'_>, Fault> {
        let mut at = RAW_AT;
        for (first, count) in runs(mask) {
            let end = at + count as usize * PAGE_BYTES;
            memory.read(chunk * CHUNK_PAGES + u64::from(first), &mut self.frame[at..end])?;
            at = end;
        }
        let [mut zero, mut raw, mut delta] = [0_u64; 3];
        self.deltas.clear();
        let mut keep = RAW_AT;
        let mut from = RAW_AT;
        for bit in crate::wire::bits(mask) {
            let number = chunk * CHUNK_PAGES + u64::from(bit);
            let Some(page) = self.frame.get(from..).and_then(|rest| rest.first_chunk::<PAGE_BYTES>()) else {
                break;
            };
            let sent = self.sent.as_mut().filter(|_| round > 0);
            if is_zero(page) {
                zero |= 1 << bit;
                if let Some(sent) = sent {
                    sent.zero(number);
                }
            } else if sent.is_some_and(|sent| sent.delta(number, page, round, &mut self.deltas)) {
                delta |= 1 << bit;
            } else {
                raw |= 1 << bit;
                if keep != from {
                    self.frame.copy_within(from..from + PAGE_BYTES, keep);
                }
                keep += PAGE_BYTES;
            }
            from += PAGE_BYTES;
        }
        let (zero_pages, delta_pages) = (zero.count_ones(), delta.count_ones());
        let frame = self.finish(chunk, [zero, raw, delta], keep);
        Ok(Packed {
            frame,
            zero_pages,
            delta_pages,
        })
    }

    fn finish(&mut self, chunk: u64, masks: [u64; 3], raw_end: usize) -> &[u8] {
        let raw_bytes = raw_end - RAW_AT;
        if let Some(zstd) = self.zstd.as_mut().filter(|_| raw_bytes > 0) {
            // Less than an eighth saved is not worth unpacking.
            let most = raw_bytes - raw_bytes / 8;
            self.packed.resize(RAW_AT + CHUNK_BYTES, 0);
            let (from, to) = (&self.frame[RAW_AT..raw_end], &mut self.packed[RAW_AT..RAW_AT + most]);
            // An error is that it does not fit.
            if let Ok(bytes) = zstd.compress_to_buffer(from, to) {
                self.packed.truncate(RAW_AT + bytes);
                self.packed.extend(&self.deltas);
                finish_pages(&mut self.packed, chunk, masks, bytes);
                return &self.packed;
            }
        }
        // A delta is shorter than the page whose place it takes.
        let end = raw_end + self.deltas.len();
        self.frame[raw_end..end].copy_from_slice(&self.deltas);
        finish_pages(&mut self.frame[..end], chunk, masks, raw_bytes);
        &self.frame[..end]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::wire::{PageFrame, read_frame};

    struct Ram(Mutex<Vec<u8>>);

    impl SourceMemory for Ram {
        fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
            let at = usize::try_from(first).unwrap() * PAGE_BYTES;
            into.copy_from_slice(&self.0.lock().unwrap()[at..at + into.len()]);
            Ok(())
        }
    }

    /// What a target makes of a frame.
    fn unpack(frame: &[u8], ram: &mut [u8]) {
        let mut payload = Vec::new();
        read_frame(&mut &frame[..], &mut payload).unwrap();
        let pages = PageFrame::decode(&payload).unwrap();
        let at = |bit: u32| (usize::try_from(pages.chunk * CHUNK_PAGES).unwrap() + bit as usize) * PAGE_BYTES;
        for bit in crate::wire::bits(pages.zero) {
            ram[at(bit)..][..PAGE_BYTES].fill(0);
        }
        let mut room = Vec::new();
        let raw = pages.raw_pages(&mut room).unwrap();
        for (bit, page) in crate::wire::bits(pages.raw).zip(raw.chunks(PAGE_BYTES)) {
            ram[at(bit)..][..PAGE_BYTES].copy_from_slice(page);
        }
        pages
            .for_each_delta(|bit, bytes| delta::apply(bytes, ram[at(bit)..].first_chunk_mut().unwrap()))
            .unwrap();
    }

    #[test]
    fn what_is_packed_again_and_again_stays_equal() {
        let pages = 70;
        let everything = Offers::ZSTD.with(Offers::DELTA);
        for offers in [Offers::none(), Offers::ZSTD, Offers::DELTA, everything] {
            let ram = Ram(Mutex::new(vec![0; pages * PAGE_BYTES]));
            let mut copy = vec![0; pages * PAGE_BYTES];
            let mut packer = Packer::new(offers, 16 * PAGE_BYTES);
            let mut deltas = 0;
            let mut noise = 1_u32;
            for round in 1..12 {
                for page in 0..pages {
                    let mut memory = ram.0.lock().unwrap();
                    let page_bytes = &mut memory[page * PAGE_BYTES..][..PAGE_BYTES];
                    match (page + round) % 7 {
                        0 => page_bytes.fill(0),
                        1 => page_bytes.iter_mut().for_each(|byte| {
                            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            *byte = noise.to_le_bytes()[3];
                        }),
                        _ => page_bytes[round * 8] = page_bytes[round * 8].wrapping_add(1),
                    }
                }
                for (chunk, mask) in [(0, u64::MAX), (1, 0x2f)] {
                    let packed = packer.pack(&ram, chunk, mask, u32::try_from(round).unwrap()).unwrap();
                    deltas += packed.delta_pages;
                    unpack(packed.frame, &mut copy);
                }
                let memory = ram.0.lock().unwrap();
                assert!(
                    memory[..68 * PAGE_BYTES] == copy[..68 * PAGE_BYTES],
                    "{offers:?} round {round}"
                );
                assert!(
                    copy[68 * PAGE_BYTES..69 * PAGE_BYTES].iter().all(|byte| *byte == 0),
                    "page 68 was not sent"
                );
            }
            assert_eq!(deltas > 0, offers.has(Offers::DELTA));
        }
    }

    #[test]
    fn runs_cover_their_mask() {
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), [(0, 64)]);
        assert_eq!(runs(0b1101 | 1 << 63).collect::<Vec<_>>(), [(0, 1), (2, 2), (63, 1)]);
    }
}
