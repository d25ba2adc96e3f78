//! How long a fetch waits, how often it tries, and what counts as progress.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Bounds on time and tries. All times are those spent waiting for the peer: a consumer that takes its time costs the peer nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From looking the name up to the end of the TLS handshake, milliseconds.
    pub connect_timeout_ms: u64,
    /// From there to the end of the answer's headers, milliseconds.
    pub answer_timeout_ms: u64,
    /// Longest silence within a body, milliseconds.
    pub idle_timeout_ms: u64,
    /// Least rate, averaged over each window, bytes per second. 0: none.
    pub rate_min_bytes_per_s: u64,
    /// The window of the least rate, milliseconds.
    pub rate_window_ms: u64,
    /// Requests in a row that fail without `progress_bytes` between them, at which a fetch gives up. 1: no second try.
    pub tries_max: u32,
    /// Requests of one fetch in all, however much each brought.
    pub requests_max: u32,
    /// Bytes that make the count of failed tries start over.
    pub progress_bytes: u64,
    /// Pause before the second try, milliseconds; it doubles with every failed one.
    pub pause_first_ms: u64,
    /// Longest pause, milliseconds; also the longest `Retry-After` obeyed: a server that asks for more ends the fetch.
    pub pause_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 15_000,
            answer_timeout_ms: 30_000,
            idle_timeout_ms: 30_000,
            // An image of 1 GiB in 18 hours: slower than that is a fault or an attack, not a line.
            rate_min_bytes_per_s: 16 << 10,
            rate_window_ms: 30_000,
            tries_max: 5,
            requests_max: 100,
            progress_bytes: 1 << 20,
            pause_first_ms: 500,
            pause_max_ms: 120_000,
        }
    }
}

impl Limits {
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn answer_timeout(&self) -> Duration {
        Duration::from_millis(self.answer_timeout_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

/// Bytes received against time spent waiting for them.
#[derive(Debug)]
pub(crate) struct RateMeter {
    window: Duration,
    least_bytes: u64,
    waited: Duration,
    received: u64,
}

impl RateMeter {
    pub(crate) fn new(limits: &Limits) -> Self {
        let least = u128::from(limits.rate_min_bytes_per_s) * u128::from(limits.rate_window_ms) / 1000;
        let measured = limits.rate_min_bytes_per_s > 0 && limits.rate_window_ms > 0;
        Self {
            window: if measured {
                Duration::from_millis(limits.rate_window_ms)
            } else {
                Duration::MAX
            },
            least_bytes: u64::try_from(least).unwrap_or(u64::MAX),
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// How long the peer may go on being waited for before the window is full.
    pub(crate) fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    /// Takes in one wait and what it brought; false if the window is full and too little came in it.
    pub(crate) fn note(&mut self, since: Instant, bytes: u64) -> bool {
        self.waited = self.waited.saturating_add(since.elapsed());
        self.received = self.received.saturating_add(bytes);
        if self.waited < self.window {
            return true;
        }
        let enough = self.received >= self.least_bytes;
        self.waited = Duration::ZERO;
        self.received = 0;
        enough
    }
}

/// The count of tries of one fetch.
#[derive(Debug)]
pub(crate) struct Patience {
    failed: u32,
    requests: u32,
    mark: u64,
}

impl Patience {
    pub(crate) fn new(offset: u64) -> Self {
        Self {
            failed: 0,
            requests: 0,
            mark: offset,
        }
    }

    pub(crate) fn request(&mut self) {
        self.requests += 1;
    }

    /// Failed tries in a row.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// Takes in a failure at `offset`; gives the pause before the next try, or none if there shall be none. `wanted` is what the
    /// server asked for.
    pub(crate) fn fail(&mut self, limits: &Limits, offset: u64, wanted: Option<Duration>) -> Option<Duration> {
        if offset.saturating_sub(self.mark) >= limits.progress_bytes {
            self.failed = 0;
            self.mark = offset;
        }
        self.failed += 1;
        let longest = Duration::from_millis(limits.pause_max_ms);
        if self.failed >= limits.tries_max
            || self.requests >= limits.requests_max
            || wanted.is_some_and(|wanted| wanted > longest)
        {
            return None;
        }
        let doubled = limits.pause_first_ms.saturating_mul(1 << (self.failed - 1).min(32));
        let pause = Duration::from_millis(doubled).min(longest);
        Some(jittered(pause).max(wanted.unwrap_or_default()))
    }
}

/// Something between half of `pause` and all of it, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // The keys of a new hasher differ each time: random enough for spreading.
    let random = RandomState::new().hash_one(0u8) % 1024;
    let part = u32::try_from(random).unwrap_or(0);
    pause / 2 + (pause / 2) * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            tries_max: 3,
            requests_max: 10,
            progress_bytes: 100,
            pause_first_ms: 100,
            pause_max_ms: 1000,
            ..Limits::default()
        }
    }

    #[test]
    fn pauses_double_and_end() {
        let limits = limits();
        let mut patience = Patience::new(0);
        let first = patience.fail(&limits, 0, None).unwrap();
        assert!((50..=100).contains(&first.as_millis()), "{first:?}");
        let second = patience.fail(&limits, 0, None).unwrap();
        assert!((100..=200).contains(&second.as_millis()), "{second:?}");
        assert_eq!(patience.fail(&limits, 99, None), None);
    }

    #[test]
    fn progress_renews_patience_up_to_the_bound() {
        let limits = limits();
        let mut patience = Patience::new(0);
        for round in 1..10 {
            patience.request();
            assert!(patience.fail(&limits, round * 100, None).is_some(), "{round}");
            assert_eq!(patience.failed(), 1);
        }
        patience.request();
        assert_eq!(patience.fail(&limits, 1000, None), None);
    }

    #[test]
    fn a_servers_wish_is_obeyed_within_reason() {
        let limits = limits();
        let wish = |ms| Patience::new(0).fail(&limits, 0, Some(Duration::from_millis(ms)));
        assert_eq!(wish(900), Some(Duration::from_millis(900)));
        assert!(wish(1).unwrap() >= Duration::from_millis(50));
        assert_eq!(wish(1001), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_spent_waiting_counts_against_the_rate() {
        let limits = Limits {
            rate_min_bytes_per_s: 10,
            rate_window_ms: 2000,
            ..Limits::default()
        };
        let mut meter = RateMeter::new(&limits);
        let wait = async |meter: &mut RateMeter, ms, bytes| {
            let since = Instant::now();
            tokio::time::sleep(Duration::from_millis(ms)).await;
            meter.note(since, bytes)
        };
        assert!(wait(&mut meter, 1900, 1).await);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(wait(&mut meter, 100, 19).await);
        assert!(wait(&mut meter, 1000, 10).await);
        assert_eq!(meter.left(), Duration::from_secs(1));
        assert!(!wait(&mut meter, 1000, 9).await);
    }
}
