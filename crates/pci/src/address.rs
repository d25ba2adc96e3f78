//! Address windows from which BARs get their first addresses.

use std::collections::BTreeMap;
use std::ops::Range;

/// Guest-physical ranges that belong to the root bus, and who holds what of them.
///
/// First fit, naturally aligned. The machine tells the guest about the same ranges in the root bus's `_CRS`; a guest that
/// moves a BAR outside of them gets it unmapped ([`Windows::contain`]).
#[derive(Debug)]
pub(crate) struct Windows {
    windows: Vec<Range<u64>>,
    /// base → size, bytes.
    taken: BTreeMap<u64, u64>,
}

impl Windows {
    pub(crate) const fn new(windows: Vec<Range<u64>>) -> Self {
        Self {
            windows,
            taken: BTreeMap::new(),
        }
    }

    /// True if `base..base + size` lies in one window.
    pub(crate) fn contain(&self, base: u64, size: u64) -> bool {
        base.checked_add(size)
            .is_some_and(|end| self.windows.iter().any(|w| w.start <= base && end <= w.end))
    }

    /// A free, naturally aligned range; `size` is a power of two.
    pub(crate) fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.windows.iter().find_map(|window| self.first_fit(window, size))?;
        self.taken.insert(base, size);
        Some(base)
    }

    /// Gives back what [`Windows::take`] returned.
    pub(crate) fn give_back(&mut self, base: u64) {
        self.taken.remove(&base);
    }

    fn first_fit(&self, window: &Range<u64>, size: u64) -> Option<u64> {
        let mut base = window.start.checked_next_multiple_of(size)?;
        for (&taken, &length) in self.taken.range(..window.end) {
            let taken_end = taken.checked_add(length)?;
            if taken_end <= base {
                continue;
            }
            if base.checked_add(size)? <= taken {
                break;
            }
            base = taken_end.checked_next_multiple_of(size)?;
        }
        base.checked_add(size).filter(|&end| end <= window.end).map(|_| base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_aligned_ranges_first_fit_and_reuses_them() {
        let mut windows = Windows::new(vec![0x1800..0x3000, 0x1_0000..0x4_0000]);
        assert_eq!(windows.take(0x1000), Some(0x2000));
        assert_eq!(windows.take(0x800), Some(0x1800));
        assert_eq!(windows.take(0x1000), Some(0x1_0000));
        assert_eq!(windows.take(0x1_0000), Some(0x2_0000));
        assert_eq!(windows.take(0x1000), Some(0x1_1000));
        windows.give_back(0x2000);
        assert_eq!(windows.take(0x1000), Some(0x2000));
        assert_eq!(windows.take(0x10_0000), None);
    }

    #[test]
    fn knows_what_lies_inside() {
        let windows = Windows::new(vec![0x1000..0x3000, 0x8000..0x9000]);
        assert!(windows.contain(0x1000, 0x2000));
        assert!(!windows.contain(0x2000, 0x2000));
        assert!(!windows.contain(0, 0x1000));
        assert!(!windows.contain(u64::MAX, 1));
    }
}
