//! How long things take: a histogram that many threads write and one reads.
//!
//! Buckets are log-linear: eight of equal width per power of two, so that a value is known to within an eighth of itself from
//! 1 ns to 18 minutes, in 2.5 KiB. Recording is two relaxed atomic additions and no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per power of two, as a power of two.
const FINENESS_BITS: u32 = 3;
/// Buckets per power of two.
const FINENESS: usize = 1 << FINENESS_BITS;
/// Powers of two above the first [`FINENESS`] values that are told apart: up to 2^40 ns, 18 minutes.
const OCTAVES: usize = 37;
/// All buckets; the last holds what is longer.
const BUCKETS: usize = (OCTAVES + 1) * FINENESS;

/// A histogram of durations. See the module.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Nothing recorded.
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }

    /// Counts one thing that took `duration`.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was recorded so far. Things that are recorded meanwhile are in it or are not.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<Bucket> = (0..)
            .zip(counts)
            .filter(|&(_, count)| count > 0)
            .map(|(index, count)| Bucket {
                below_ns: bound_of(index),
                count,
            })
            .collect();
        HistogramSnapshot {
            count: buckets.iter().map(|bucket| bucket.count).sum(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            buckets,
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// How many things took less than `below_ns`, and no less than the bound before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Nanoseconds; `u64::MAX` for the last bucket of all.
    pub below_ns: u64,
    /// Things; never zero.
    pub count: u64,
}

/// A [`Histogram`] at one moment: plain numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Things recorded.
    pub count: u64,
    /// Nanoseconds they took together; wraps after 584 years.
    pub sum_ns: u64,
    /// The buckets that hold something, shortest first.
    pub buckets: Vec<Bucket>,
}

impl HistogramSnapshot {
    /// A duration that `share` (0 to 1) of all things did not exceed, an eighth too long at most. `None` without things.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank that is off by a little in 2^53 is right enough"
        )]
        let rank = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen >= rank.max(1)
        })?;
        Some(Duration::from_nanos(bucket.below_ns))
    }

    /// What all took on average. `None` without things.
    pub fn mean(&self) -> Option<Duration> {
        self.sum_ns.checked_div(self.count).map(Duration::from_nanos)
    }
}

/// The bucket of a value: the value itself below [`FINENESS`], then [`FINENESS`] buckets for each power of two.
fn bucket_of(ns: u64) -> usize {
    let Some(octave) = ns.checked_ilog2().and_then(|log| log.checked_sub(FINENESS_BITS)) else {
        return usize::try_from(ns).unwrap_or(0);
    };
    // With its octave shifted out, the value is FINENESS to 2 * FINENESS - 1.
    let fine = usize::try_from(ns >> octave).unwrap_or(0);
    let index = octave as usize * FINENESS + fine;
    index.min(BUCKETS - 1)
}

/// First value that is too long for bucket `index`.
fn bound_of(index: usize) -> u64 {
    if index + 1 >= BUCKETS {
        return u64::MAX;
    }
    let next = index + 1;
    if next < FINENESS {
        return next as u64;
    }
    let octave = next / FINENESS - 1;
    ((next % FINENESS + FINENESS) as u64) << octave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_below_its_bound_and_not_below_the_one_before() {
        let powers = (0..64).flat_map(|log| [1_u64 << log, (1_u64 << log) - 1, (1_u64 << log) + (1 << log >> 2)]);
        for ns in powers.chain(0..5000) {
            let bucket = bucket_of(ns);
            assert!(ns < bound_of(bucket) || bucket == BUCKETS - 1, "{ns} in {bucket}");
            assert!(bucket == 0 || ns >= bound_of(bucket - 1), "{ns} in {bucket}");
        }
        for index in 1..BUCKETS - 1 {
            let (from, to) = (bound_of(index - 1), bound_of(index));
            assert!(
                to - from <= (from / FINENESS as u64).max(1),
                "bucket {index} is too wide"
            );
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn tells_quantiles_and_the_mean() {
        let histogram = Histogram::new();
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        (1..=1000).for_each(|us| histogram.record(Duration::from_micros(us)));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count, 1000);
        assert_eq!(snapshot.mean(), Some(Duration::from_nanos(500_500)));
        for (share, us) in [(0.5, 500), (0.99, 990), (1.0, 1000), (0.0, 1)] {
            let (told, exact) = (snapshot.quantile(share).unwrap(), Duration::from_micros(us));
            assert!(
                told >= exact && told <= exact + exact / 8 + Duration::from_nanos(1),
                "{share}: {told:?}"
            );
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let histogram = Histogram::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|ns| histogram.record(Duration::from_nanos(ns))));
            }
        });
        assert_eq!(histogram.snapshot().count, 40_000);
    }
}
