//! The bandwidth limit: one token bucket for all streams of a migration.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// How far ahead of its rate a migration may get after a pause. Short, so that a limit is one for every 20 ms and a change of
/// it is felt at once.
const BURST: Duration = Duration::from_millis(20);
/// Longest sleep at a time, so that a raised limit or a cancellation is noticed.
const NAP: Duration = Duration::from_millis(20);

/// Holds back who sends too much. Zero bytes per second is no limit.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes_per_s: u64,
    /// The limit is new: what is owed under the old one is forgiven.
    changed: bool,
    /// Until when all that was granted would take at the rate. Ahead of the clock is debt.
    paid_until: Duration,
}

impl Limiter {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self {
            state: Mutex::new(State {
                bytes_per_s,
                ..State::default()
            }),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets another limit, from now on.
    pub(crate) fn set(&self, bytes_per_s: u64) {
        self.with(|state| {
            state.bytes_per_s = bytes_per_s;
            state.changed = true;
        });
    }

    pub(crate) fn bytes_per_s(&self) -> u64 {
        self.with(|state| state.bytes_per_s)
    }

    /// Waits until `bytes` may be sent, or until `given_up` says that nobody wants to send them any more.
    pub(crate) fn take(&self, bytes: usize, clock: &dyn Clock, given_up: impl Fn() -> bool) {
        let mut charged = false;
        loop {
            let now = clock.now();
            let wait = self.with(|state| {
                if std::mem::take(&mut state.changed) {
                    state.paid_until = state.paid_until.min(now);
                }
                if state.bytes_per_s == 0 {
                    return Duration::ZERO;
                }
                if !charged {
                    let nanos = bytes as u128 * 1_000_000_000 / u128::from(state.bytes_per_s);
                    let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                    state.paid_until = state.paid_until.max(now.saturating_sub(BURST)).saturating_add(cost);
                }
                state.paid_until.saturating_sub(now)
            });
            charged = true;
            if wait.is_zero() || given_up() {
                return;
            }
            clock.sleep(wait.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Virtual(Mutex<Duration>);

    impl Clock for Virtual {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    #[test]
    fn a_limit_is_kept_within_five_percent() {
        for rate in [1_u64 << 20, 64 << 20, 2048 << 20] {
            let (clock, limiter) = (Virtual::default(), Limiter::new(rate));
            let piece = 256_u64 << 10;
            let sent = (rate * 4).div_ceil(piece) * piece;
            for _ in 0..sent / piece {
                limiter.take(usize::try_from(piece).unwrap(), &clock, || false);
            }
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            let ratio = sent as f64 / clock.now().as_secs_f64() / rate as f64;
            assert!((0.95..=1.05).contains(&ratio), "{rate}: {ratio}");
        }
    }

    #[test]
    fn a_new_limit_counts_at_once() {
        let (clock, limiter) = (Virtual::default(), Limiter::new(1000));
        limiter.take(4000, &clock, || false);
        let slow = clock.now();
        assert!(slow >= Duration::from_millis(3900));
        limiter.set(100_000);
        limiter.take(100_000, &clock, || false);
        assert!(clock.now() - slow <= Duration::from_millis(1001));
        limiter.set(0);
        let now = clock.now();
        limiter.take(usize::MAX, &clock, || false);
        assert_eq!(clock.now(), now);
    }

    #[test]
    fn who_gives_up_does_not_wait() {
        let (clock, limiter) = (Virtual::default(), Limiter::new(1));
        limiter.take(1 << 30, &clock, || true);
        assert_eq!(clock.now(), Duration::ZERO);
    }
}
