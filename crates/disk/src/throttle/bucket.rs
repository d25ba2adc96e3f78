//! A token bucket that may go into debt.

use std::time::Duration;

use super::Rate;

/// Parts of a token that are counted: a rate per second times nanoseconds is exact.
const PARTS: i128 = 1_000_000_000;

/// Tokens that drip in at a rate, up to a burst. Who wants more than a burst gets it for a full bucket, and leaves it in debt.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// Parts of tokens; negative is debt.
    level: i128,
    filled_at: Duration,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Duration) -> Self {
        let rate = Rate {
            per_second: rate.per_second.max(1),
            burst: rate.burst.max(1),
        };
        Self {
            rate,
            level: i128::from(rate.burst) * PARTS,
            filled_at: now,
        }
    }

    /// The same savings or debt, in time, at another rate.
    pub(super) fn changed(&self, rate: Rate, now: Duration) -> Self {
        let mut old = Self { ..*self };
        old.fill(now);
        let mut new = Self::full(rate, now);
        let time = old.level / i128::from(old.rate.per_second);
        let scaled = time.saturating_mul(i128::from(new.rate.per_second));
        new.level = new.level.min(scaled);
        new
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at);
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX >> 64);
        let cap = i128::from(self.rate.burst) * PARTS;
        let dripped = passed.saturating_mul(i128::from(self.rate.per_second));
        self.level = self.level.saturating_add(dripped).min(cap);
        self.filled_at = self.filled_at.max(now);
    }

    /// How long until `tokens` may be taken; zero for now.
    pub(super) fn wait(&mut self, tokens: u64, now: Duration) -> Duration {
        self.fill(now);
        let missing = i128::from(tokens.min(self.rate.burst)) * PARTS - self.level;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let nanos = missing.unsigned_abs().div_ceil(u128::from(self.rate.per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn take(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * PARTS;
    }

    pub(super) fn give_back(&mut self, tokens: u64) {
        let cap = i128::from(self.rate.burst) * PARTS;
        self.level = (self.level + i128::from(tokens) * PARTS).min(cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_exact_and_debts_are_paid_in_time() {
        let rate = Rate {
            per_second: 3,
            burst: 2,
        };
        let ms = Duration::from_millis;
        let mut bucket = Bucket::full(rate, ms(0));
        bucket.take(1);
        assert_eq!(bucket.wait(1, ms(0)), Duration::ZERO);
        assert_eq!(bucket.wait(2, ms(0)), Duration::from_nanos(333_333_334));
        // More than a burst is there for a full bucket.
        assert_eq!(bucket.wait(5, ms(0)), Duration::from_nanos(333_333_334));
        bucket.take(4);
        // Three in debt.
        assert_eq!(bucket.wait(0, ms(0)), ms(1000));
        assert_eq!(bucket.wait(0, ms(999)), ms(1));
        assert_eq!(bucket.wait(0, ms(1000)), Duration::ZERO);
        // Savings end at the burst.
        assert_eq!(bucket.wait(2, ms(60_000)), Duration::ZERO);
        bucket.take(2);
        assert!(bucket.wait(1, ms(60_000)) > Duration::ZERO);
        bucket.give_back(9);
        bucket.take(2);
        assert!(bucket.wait(1, ms(60_000)) > Duration::ZERO);
    }

    #[test]
    fn a_change_of_rate_keeps_what_is_owed_as_time() {
        let mut bucket = Bucket::full(
            Rate {
                per_second: 1000,
                burst: 1,
            },
            Duration::ZERO,
        );
        bucket.take(1001);
        let mut slower = bucket.changed(
            Rate {
                per_second: 10,
                burst: 1,
            },
            Duration::ZERO,
        );
        let wait = slower.wait(0, Duration::ZERO);
        assert!((999..=1001).contains(&wait.as_millis()), "{wait:?}");
        // Nothing overflows, however odd the numbers.
        let mut odd = Bucket::full(
            Rate {
                per_second: u64::MAX,
                burst: u64::MAX,
            },
            Duration::ZERO,
        );
        odd.take(u64::MAX);
        odd.take(u64::MAX);
        assert!(odd.wait(1, Duration::MAX) == Duration::ZERO);
        let slow = Rate {
            per_second: 1,
            burst: u64::MAX,
        };
        let fast = Rate {
            per_second: u64::MAX,
            ..slow
        };
        let mut changed = Bucket::full(slow, Duration::ZERO).changed(fast, Duration::ZERO);
        assert_eq!(changed.wait(u64::MAX, Duration::ZERO), Duration::ZERO);
        let mut zero = Bucket::full(
            Rate {
                per_second: 0,
                burst: 0,
            },
            Duration::ZERO,
        );
        zero.take(u64::MAX);
        assert!(zero.wait(1, Duration::ZERO) > Duration::from_secs(1));
    }
}
