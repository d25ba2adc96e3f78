//! Time, passed in, so that deadlines are tested without waiting for them.

use std::thread;
use std::time::{Duration, Instant};

/// What time it is, for deadlines, rates and the bandwidth limit.
pub trait Clock: Send + Sync {
    /// Time since some fixed instant; never goes back.
    fn now(&self) -> Duration;

    /// Returns when `time` has passed by [`Clock::now`].
    fn sleep(&self, time: Duration);
}

/// The clock of the host, which suspended time does not count for.
#[derive(Debug)]
pub struct HostClock {
    begin: Instant,
}

impl HostClock {
    /// Starts at zero.
    pub fn new() -> Self {
        Self { begin: Instant::now() }
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}
