//! Rates: how a specification's become the throttle's, and the time they are measured by.

use std::time::{Duration, Instant};

use disk::DiskFuture;
use disk::throttle::{Limits, Rate, Timer};
use spec::{ByteSize, DiskLimits};
use uring::Ring;

/// What may go at once after a pause, where the specification does not say: long enough that a burst of a guest's page cache
/// goes through, short enough that nobody notices the pause after it.
const BURST_DEFAULT: Duration = Duration::from_millis(100);

/// `limits` as the throttle has them.
pub(super) fn of(limits: &DiskLimits) -> Limits {
    let burst = limits
        .burst_ms
        .map_or(BURST_DEFAULT, |ms| Duration::from_millis(ms.into()));
    let operations = |rate: Option<u64>| rate.map(|rate| Rate::with_burst(rate, burst));
    let bytes = |rate: Option<ByteSize>| operations(rate.map(ByteSize::bytes));
    Limits {
        bytes: bytes(limits.bytes_per_s),
        read_bytes: bytes(limits.read_bytes_per_s),
        write_bytes: bytes(limits.write_bytes_per_s),
        operations: operations(limits.iops),
        reads: operations(limits.read_iops),
        writes: operations(limits.write_iops),
    }
}

/// The clock of the machine's worker threads.
pub(super) struct RingTimer(Instant);

impl RingTimer {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Timer for RingTimer {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> DiskFuture<'static, ()> {
        Box::pin(async move {
            match Ring::current() {
                // Whether it ended early is of no matter: the throttle looks at the clock.
                Ok(ring) => drop(ring.sleep(duration).await),
                Err(error) => tracing::error!(%error, "a disk is used without an executor, and not limited"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::throttle::Throttle;
    use disk::{Access, Disk, InMemory};
    use std::sync::Arc;

    #[test]
    fn what_is_written_is_what_is_kept_to() {
        let written = DiskLimits {
            bytes_per_s: Some(ByteSize::from_mib(10)),
            read_iops: Some(500),
            burst_ms: Some(2000),
            ..DiskLimits::default()
        };
        let limits = of(&written);
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(limits.bytes, rate(10 << 20, 20 << 20));
        assert_eq!((limits.reads, limits.writes), (rate(500, 1000), None));
        assert_eq!(of(&DiskLimits::default()), Limits::default());
    }

    #[test]
    fn a_ring_measures_the_time() {
        let bytes = vec![0; 1 << 20];
        let memory = Arc::new(InMemory::holding(bytes, Access::ReadWrite));
        let limits = Limits {
            operations: Some(Rate {
                per_second: 100,
                burst: 1,
            }),
            ..Limits::default()
        };
        let disk = Throttle::new(memory, limits, Arc::new(RingTimer::new()));
        let begin = Instant::now();
        let mut executor = uring::Executor::new(8).unwrap();
        let io = disk.open_queue().unwrap();
        for _ in 0..6 {
            executor.block_on(io.flush()).unwrap().unwrap();
        }
        let took = begin.elapsed();
        assert!(
            took >= Duration::from_millis(40),
            "6 operations at 100 a second took {took:?}"
        );
    }
}
