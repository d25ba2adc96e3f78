//! The queue of an entropy source being served, from a bucket that fills at a steady rate.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use uring::{Bell, Ring};
use virtio::{RingError, VirtQueue};

use crate::crew::{Place, Served, Service};

/// Most bytes of one answer. A driver that wants more asks again; the bucket never holds more.
const ANSWER_MAX: usize = 4096;

/// What an entropy source did so far.
#[derive(Debug, Default)]
pub struct RngCounters {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Bytes given.
    pub bytes: AtomicU64,
}

/// A bucket of bytes to give away: at most [`ANSWER_MAX`], and `rate` more every second.
struct Bucket {
    rate: u64,
    level: u64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate: rate.max(1),
            level: ANSWER_MAX as u64,
            filled: now,
        }
    }

    /// How long until a whole answer can be given; `None` if it can now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled).as_micros();
        let gained = elapsed.saturating_mul(self.rate.into()) / 1_000_000;
        if gained > 0 {
            let full = ANSWER_MAX as u64;
            self.level = self
                .level
                .saturating_add(u64::try_from(gained).unwrap_or(full))
                .min(full);
            self.filled = now;
        }
        let missing = (ANSWER_MAX as u64)
            .checked_sub(self.level)
            .filter(|&missing| missing > 0)?;
        Some(Duration::from_micros(
            missing.saturating_mul(1_000_000).div_ceil(self.rate),
        ))
    }

    const fn take(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(bytes);
    }
}

/// A [`Service`] for the one queue.
pub(super) struct Worker {
    queue: Served,
    bucket: Bucket,
    counters: Arc<RngCounters>,
    ring: Ring,
    bell: Bell,
    asleep: Rc<Cell<bool>>,
}

impl Worker {
    pub(super) fn new(queue: VirtQueue, rate: u64, counters: Arc<RngCounters>, place: &Place) -> Self {
        Self {
            queue: Served::new(queue),
            bucket: Bucket::new(rate, Instant::now()),
            counters,
            ring: place.ring.clone(),
            bell: place.bell.clone(),
            asleep: Rc::default(),
        }
    }

    /// Rings the bell after `duration`, once.
    fn sleep(&self, duration: Duration) {
        if self.asleep.replace(true) {
            return;
        }
        let (ring, bell, asleep) = (self.ring.clone(), self.bell.clone(), Rc::clone(&self.asleep));
        let _sleeping = self.ring.spawn(async move {
            // Fails only when the executor ends.
            let _ = ring.sleep(duration).await;
            asleep.set(false);
            bell.ring();
        });
    }
}

impl Service for Worker {
    /// At most one answer per full bucket, so this ends.
    fn begin(&mut self) {
        loop {
            if let Some(duration) = self.bucket.wait(Instant::now()) {
                return self.sleep(duration);
            }
            match self.queue.with(answer) {
                Some(Some(bytes)) => {
                    self.bucket.take(bytes);
                    self.counters.requests.fetch_add(1, Ordering::Relaxed);
                    self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
                    if bytes == 0 {
                        // Costs nothing, so nothing else bounds it.
                        return self.bell.ring();
                    }
                }
                Some(None) => {
                    if self.queue.with(VirtQueue::arm) == Some(true) {
                        self.bell.ring();
                    }
                    return;
                }
                None => return,
            }
        }
    }

    fn settle(&mut self) -> bool {
        let _ = self.queue.with(VirtQueue::signal);
        true
    }

    fn finish(self) -> Vec<VirtQueue> {
        vec![self.queue.into_queue()]
    }
}

/// Answers one request, and says with how many bytes.
fn answer(queue: &mut VirtQueue) -> Result<Option<u64>, RingError> {
    let Some(chain) = queue.pop()? else { return Ok(None) };
    let mut into = chain.writable(queue.memory())?;
    let mut bytes = [0; ANSWER_MAX];
    let wanted = into.len().min(ANSWER_MAX);
    // Blocks only before the host's generator is first seeded, early in its boot. Of a failure the guest gets what there is.
    let given = bytes
        .get_mut(..wanted)
        .map_or(0, |bytes| getrandom(bytes, GetRandomFlags::empty()).unwrap_or(0));
    let written = into.copy_from(bytes.get(..given).unwrap_or_default()) as u64;
    queue.push(chain.head, u32::try_from(written).unwrap_or(0))?;
    Ok(Some(written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_fills_at_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(4096, start);
        assert_eq!(bucket.wait(start), None);
        bucket.take(4096);
        assert_eq!(bucket.wait(start), Some(Duration::from_secs(1)));
        let half = start + Duration::from_millis(500);
        assert_eq!(bucket.wait(half), Some(Duration::from_millis(500)));
        assert_eq!(bucket.wait(start + Duration::from_secs(9)), None);
        bucket.take(1024);
        assert_eq!(
            bucket.wait(start + Duration::from_secs(9)),
            Some(Duration::from_millis(250))
        );
    }
}
