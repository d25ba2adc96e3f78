//! Which pages device code wrote: a bitmap that costs one relaxed load per write while nobody wants it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes per bit: a 4 KiB guest page, as in [`crate::layout::PAGE_SIZE`].
const PAGE: usize = 4096;

/// Pages per word of the bitmap.
const WORD_PAGES: usize = 64;

/// The pages of one region that this process wrote since the last [`DirtyLog::take`].
///
/// Off at first: no bits are allocated and marks are dropped. Marks may come from any thread. A mark that races with `take`
/// lands in this one or the next; a caller that needs the last marks pauses the devices first.
#[derive(Debug, Default)]
pub struct DirtyLog {
    pages: usize,
    active: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyLog {
    /// Begins recording, from a clean bitmap.
    pub fn start(&self) {
        let words = self.words();
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        self.active.store(true, Ordering::SeqCst);
    }

    /// Ends recording; later marks are dropped.
    pub fn stop(&self) {
        self.active.store(false, Ordering::SeqCst);
    }

    /// The bitmap since the last call, cleared by it: one bit per 4 KiB page, the layout of `KVM_GET_DIRTY_LOG`. All clean
    /// when the log was never started.
    pub fn take(&self) -> Vec<u64> {
        self.words().iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.get_or_init(|| {
            (0..self.pages.div_ceil(WORD_PAGES))
                .map(|_| AtomicU64::new(0))
                .collect()
        })
    }

    fn page_of(offset: usize) -> usize {
        offset / PAGE
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 || !self.active.load(Ordering::Relaxed) {
            return;
        }
        let Some(words) = self.words.get() else { return };
        let last = Self::page_of(offset.saturating_add(len - 1));
        for page in Self::page_of(offset)..=last.min(self.pages.saturating_sub(1)) {
            if let Some(word) = words.get(page / WORD_PAGES) {
                word.fetch_or(1 << (page % WORD_PAGES), Ordering::Release);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = Self::page_of(offset);
        self.words
            .get()
            .and_then(|words| words.get(page / WORD_PAGES))
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % WORD_PAGES)) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyLog {
    fn with_len(len: usize) -> Self {
        Self {
            pages: len.div_ceil(PAGE),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_only_between_start_and_stop() {
        let log = DirtyLog::with_len(130 * PAGE);
        log.mark_dirty(0, PAGE);
        assert_eq!(log.take(), vec![0, 0, 0]);
        log.start();
        log.mark_dirty(63 * PAGE + 1, PAGE);
        log.mark_dirty(129 * PAGE, 1);
        assert!(log.dirty_at(64 * PAGE) && !log.dirty_at(65 * PAGE));
        assert_eq!(log.take(), vec![1 << 63, 1, 2]);
        assert_eq!(log.take(), vec![0, 0, 0]);
        log.stop();
        log.mark_dirty(0, PAGE);
        assert_eq!(log.take(), vec![0, 0, 0]);
    }

    #[test]
    fn marks_past_the_end_or_of_no_length_change_nothing() {
        let log = DirtyLog::with_len(PAGE);
        log.start();
        log.mark_dirty(PAGE, PAGE);
        log.mark_dirty(0, 0);
        assert_eq!(log.take(), vec![0]);
        log.slice_at(PAGE - 1).mark_dirty(0, usize::MAX);
        assert_eq!(log.take(), vec![1]);
    }
}
