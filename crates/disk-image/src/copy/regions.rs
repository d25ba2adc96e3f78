//! Who copies what: regions of a disk, handed out in order.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::watch::Watch;

/// What is handed out at once, bytes: long enough that finding its extents costs little, short enough that all threads end
/// together.
pub(crate) const REGION_BYTES: u64 = 4 << 20;

/// A disk's regions, and how many of its bytes are done.
pub(crate) struct Regions {
    total: u64,
    next: AtomicU64,
    done: AtomicU64,
}

impl Regions {
    pub(crate) const fn of(total: u64) -> Self {
        Self {
            total,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// The next region that nobody has.
    pub(crate) fn take(&self) -> Option<Range<u64>> {
        let step = |at: u64| (at < self.total).then(|| at.saturating_add(REGION_BYTES).min(self.total));
        let start = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .ok()?;
        Some(start..step(start)?)
    }

    /// Takes what follows a region, up to `to`, as well; false if somebody has some of it already.
    pub(crate) fn extend(&self, end: u64, to: u64) -> bool {
        self.next
            .compare_exchange(end, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// `bytes` more are dealt with.
    pub(crate) fn finish(&self, bytes: u64, watch: &dyn Watch) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        watch.progress(done, self.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_handed_out_once() {
        let regions = Regions::of(3 * REGION_BYTES + 512);
        assert_eq!(regions.take(), Some(0..REGION_BYTES));
        assert_eq!(regions.take(), Some(REGION_BYTES..2 * REGION_BYTES));
        assert!(!regions.extend(REGION_BYTES, 3 * REGION_BYTES));
        assert!(regions.extend(2 * REGION_BYTES, 3 * REGION_BYTES));
        assert_eq!(regions.take(), Some(3 * REGION_BYTES..3 * REGION_BYTES + 512));
        assert_eq!(regions.take(), None);
        assert_eq!(Regions::of(0).take(), None);
    }
}
