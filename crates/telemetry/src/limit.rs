//! A limit on how often one line is logged.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Lines let through in one window; by habit of this project, a guest in a tight loop costs ten lines per five seconds.
const LINES_PER_WINDOW: u32 = 10;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(5);

/// Ten lines per five seconds for one place in the code, as a `static` beside it.
///
/// ```
/// static STRAY_READS: telemetry::RateLimited = telemetry::RateLimited::new();
/// if let Some(admitted) = STRAY_READS.admit() {
///     tracing::warn!(suppressed = admitted.suppressed, "guest read beyond the device");
/// }
/// ```
///
/// A short lock is taken, never while anything is logged; callable from any thread.
#[derive(Debug)]
pub struct RateLimited(Mutex<Window>);

#[derive(Debug)]
struct Window {
    /// Start of the window on the clock of [`since_first_use`]; `None` before the first line.
    began: Option<Duration>,
    lines: u32,
    suppressed: u64,
}

/// Leave to log one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Lines of the same limiter that were dropped since the last one that was let through; log it.
    pub suppressed: u64,
}

impl RateLimited {
    /// Nothing logged yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Window {
            began: None,
            lines: 0,
            suppressed: 0,
        }))
    }

    /// Leave to log one line now, or `None`: then it is counted and the caller stays silent.
    pub fn admit(&self) -> Option<Admitted> {
        self.admit_at(since_first_use())
    }

    fn admit_at(&self, now: Duration) -> Option<Admitted> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = window.began.is_none_or(|began| now.saturating_sub(began) >= WINDOW);
        if fresh {
            window.began = Some(now);
            window.lines = 0;
        }
        if window.lines >= LINES_PER_WINDOW {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(Admitted {
            suppressed: std::mem::take(&mut window.suppressed),
        })
    }
}

impl Default for RateLimited {
    fn default() -> Self {
        Self::new()
    }
}

fn since_first_use() -> Duration {
    static FIRST_USE: OnceLock<Instant> = OnceLock::new();
    FIRST_USE.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_pass_per_window_and_the_rest_is_counted_once() {
        let limit = RateLimited::new();
        let at = Duration::from_millis;
        let passed = (0..10_000).filter(|n| limit.admit_at(at(n % 4999)).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.admit_at(at(5000)), Some(Admitted { suppressed: 9990 }));
        assert_eq!(limit.admit_at(at(5001)), Some(Admitted { suppressed: 0 }));
    }

    #[test]
    fn a_slow_guest_is_never_silenced() {
        let limit = RateLimited::new();
        assert!((0..100).all(|n| limit.admit_at(Duration::from_millis(600 * n)) == Some(Admitted { suppressed: 0 })));
    }
}
