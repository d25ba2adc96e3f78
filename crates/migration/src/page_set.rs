//! Sets of pages: one bit for each page of guest RAM, one word for each chunk.
//!
//! Pages are numbered from 0 over all regions in the order of [`crate::RamLayout`]. A *chunk* is [`CHUNK_PAGES`] pages; it is
//! what a page frame carries and what is dealt to a stream.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page of guest RAM, as the protocol counts them.
pub const PAGE_BYTES: usize = 4096;
/// Pages in a chunk: the bits of one word of a [`PageSet`].
pub const CHUNK_PAGES: u64 = 64;
/// Bytes of a whole chunk.
pub const CHUNK_BYTES: usize = PAGE_BYTES * 64;
/// Most pages of a machine: 16 TiB. Bounds what a peer can make us allocate for a set to 512 MiB, and that only after both
/// sides agreed on the layout.
pub const PAGES_MAX: u64 = 1 << 32;

/// Some pages of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    pages: u64,
    words: Vec<u64>,
}

/// The words that hold `pages` bits. Never above [`PAGES_MAX`] / 64.
fn word_count(pages: u64) -> usize {
    usize::try_from(pages.min(PAGES_MAX).div_ceil(CHUNK_PAGES)).unwrap_or(0)
}

/// The bits of word `chunk` that are pages of a machine of `pages` pages.
pub(crate) fn valid_mask(pages: u64, chunk: u64) -> u64 {
    let begin = chunk.saturating_mul(CHUNK_PAGES);
    match pages.saturating_sub(begin) {
        0 => 0,
        left if left >= CHUNK_PAGES => u64::MAX,
        left => (1 << left) - 1,
    }
}

impl PageSet {
    /// None of `pages` pages.
    pub fn empty(pages: u64) -> Self {
        Self {
            pages,
            words: vec![0; word_count(pages)],
        }
    }

    /// All of `pages` pages.
    pub fn full(pages: u64) -> Self {
        let words = (0..)
            .zip(vec![0_u64; word_count(pages)])
            .map(|(chunk, _)| valid_mask(pages, chunk))
            .collect();
        Self { pages, words }
    }

    /// How many pages the machine has, whether in the set or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// True when no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether `page` is in the set; false for a page that the machine has not.
    pub fn contains(&self, page: u64) -> bool {
        self.chunk(page / CHUNK_PAGES) & (1 << (page % CHUNK_PAGES)) != 0
    }

    /// Adds `page`; one that the machine has not is passed over.
    pub fn insert(&mut self, page: u64) {
        self.add(page / CHUNK_PAGES, 1 << (page % CHUNK_PAGES));
    }

    /// The pages of one chunk, lowest page in bit 0.
    pub fn chunk(&self, chunk: u64) -> u64 {
        usize::try_from(chunk)
            .ok()
            .and_then(|at| self.words.get(at))
            .copied()
            .unwrap_or(0)
    }

    /// Adds the pages of `mask` in `chunk`; those that the machine has not are passed over.
    pub fn add(&mut self, chunk: u64, mask: u64) {
        let valid = valid_mask(self.pages, chunk);
        if let Some(word) = usize::try_from(chunk).ok().and_then(|at| self.words.get_mut(at)) {
            *word |= mask & valid;
        }
    }

    /// Adds all pages of `other`, which is of the same machine.
    pub fn union(&mut self, other: &Self) {
        for (chunk, mask) in other.chunks() {
            self.add(chunk, mask);
        }
    }

    /// The chunks that have a page in the set, with their pages, in ascending order.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..)
            .zip(&self.words)
            .filter(|(_, word)| **word != 0)
            .map(|(chunk, word)| (chunk, *word))
    }

    /// How many chunks the machine has.
    pub fn chunk_count(&self) -> u64 {
        self.words.len() as u64
    }
}

/// A set that several streams take pages from at once. A page that was taken is taken by one.
#[derive(Debug)]
pub(crate) struct SharedPages {
    pages: u64,
    words: Vec<AtomicU64>,
}

impl SharedPages {
    pub(crate) fn new(set: &PageSet) -> Self {
        Self {
            pages: set.pages,
            words: set.words.iter().map(|word| AtomicU64::new(*word)).collect(),
        }
    }

    fn word(&self, chunk: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(chunk).ok()?)
    }

    /// The pages of `chunk` that are left; all of them are taken.
    pub(crate) fn take_chunk(&self, chunk: u64) -> u64 {
        self.word(chunk).map_or(0, |word| word.swap(0, Ordering::AcqRel))
    }

    /// Takes `page`, or false when it is not there.
    pub(crate) fn take(&self, page: u64) -> bool {
        let bit = 1 << (page % CHUNK_PAGES);
        self.word(page / CHUNK_PAGES)
            .is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
    }

    /// The pages of `chunk` that are in the set.
    pub(crate) fn chunk(&self, chunk: u64) -> u64 {
        self.word(chunk).map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.chunk(page / CHUNK_PAGES) & (1 << (page % CHUNK_PAGES)) != 0
    }

    /// Takes the pages of `mask`, and says which of them were there.
    pub(crate) fn remove(&self, chunk: u64, mask: u64) -> u64 {
        self.word(chunk)
            .map_or(0, |word| word.fetch_and(!mask, Ordering::AcqRel) & mask)
    }

    /// Puts the pages of `mask` in, and says which of them were there before.
    pub(crate) fn insert(&self, chunk: u64, mask: u64) -> u64 {
        self.word(chunk)
            .map_or(0, |word| word.fetch_or(mask, Ordering::AcqRel) & mask)
    }

    pub(crate) fn chunk_count(&self) -> u64 {
        self.words.len() as u64
    }

    pub(crate) fn len(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Ordering::Acquire).count_ones()))
            .sum()
    }

    pub(crate) fn to_set(&self) -> PageSet {
        let words = self.words.iter().map(|word| word.load(Ordering::Acquire)).collect();
        PageSet {
            pages: self.pages,
            words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_knows_its_edge() {
        let set = PageSet::full(70);
        assert_eq!((set.len(), set.chunk(1), set.chunk(2)), (70, 0x3f, 0));
        let mut few = PageSet::empty(70);
        few.insert(69);
        few.insert(70);
        few.add(9, u64::MAX);
        assert_eq!(few.chunks().collect::<Vec<_>>(), [(1, 0x20)]);
        assert!(few.contains(69) && !few.contains(70) && !few.contains(u64::MAX));
    }

    #[test]
    fn a_page_is_taken_once() {
        let shared = SharedPages::new(&PageSet::full(65));
        assert!(shared.take(64) && !shared.take(64) && !shared.take(65));
        assert_eq!(
            (shared.take_chunk(0), shared.take_chunk(0), shared.len()),
            (u64::MAX, 0, 0)
        );
    }
}
