//! What is told about a migration while it runs, and how it is steered from outside.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::limiter::Limiter;
use crate::phase::Phase;

/// Figures of a running migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Guest RAM, bytes.
    pub total_bytes: u64,
    /// Guest RAM that was dealt with, bytes: pages sent again count again.
    pub processed_bytes: u64,
    /// Guest RAM that is known to be still to send, bytes.
    pub remaining_bytes: u64,
    /// Bytes that went over the streams.
    pub wire_bytes: u64,
    /// Pages that were zero, so that only a bit of each was sent.
    pub zero_pages: u64,
    /// Pages sent as what changed in them.
    pub delta_pages: u64,
    /// Guest RAM that the guest dirties, bytes per second, in the last round.
    pub dirty_bytes_per_s: u64,
    /// Guest RAM that is dealt with, bytes per second, in the last round.
    pub throughput_bytes_per_s: u64,
    /// Which round over memory this is, from 1.
    pub round: u32,
    /// The pause if it began now.
    pub expected_downtime: Duration,
    /// The pause as it was: from the guest's last instruction here until the target said that it runs.
    pub downtime: Option<Duration>,
    /// How much the guest is slowed, percent.
    pub throttle_percent: u8,
    /// The machine was started before all of its memory was there.
    pub post_copy: bool,
}

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const CLOSED: u8 = 2;

/// It is too late to cancel: the machine has departed, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine has left for the target; it can be moved back, but this migration can not be cancelled any more")]
pub struct CancelRefused;

/// Watches and steers one migration at the source, from any thread. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cancel: AtomicU8,
    limiter: Limiter,
    told: Mutex<(Phase, Progress)>,
}

impl Handle {
    /// For one migration, which is in `phase` and limited to so many bytes per second (0: not).
    pub fn new(phase: Phase, bandwidth_bytes_per_s: u64) -> Self {
        let limiter = Limiter::new(bandwidth_bytes_per_s);
        let told = Mutex::new((phase, Progress::default()));
        Self {
            inner: Arc::new(Inner {
                cancel: AtomicU8::new(OPEN),
                limiter,
                told,
            }),
        }
    }

    /// Asks to give up. `Ok` means that the machine stays at the source, whatever else happens.
    pub fn cancel(&self) -> Result<(), CancelRefused> {
        match self
            .inner
            .cancel
            .compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) | Err(CANCELLED) => Ok(()),
            Err(_) => Err(CancelRefused),
        }
    }

    /// True once a cancellation was accepted.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancel.load(Ordering::Acquire) == CANCELLED
    }

    /// From now on no cancellation is accepted; false when one was.
    pub(crate) fn close(&self) -> bool {
        self.inner
            .cancel
            .compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire)
            != Err(CANCELLED)
    }

    /// Sets another limit for all streams together, bytes per second; 0 is none. Holds within a fraction of a second.
    pub fn set_bandwidth(&self, bytes_per_s: u64) {
        self.inner.limiter.set(bytes_per_s);
    }

    /// The limit in force.
    pub fn bandwidth(&self) -> u64 {
        self.inner.limiter.bytes_per_s()
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.inner.limiter
    }

    fn with<T>(&self, act: impl FnOnce(&mut (Phase, Progress)) -> T) -> T {
        act(&mut self.inner.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Figures of now.
    pub fn progress(&self) -> Progress {
        self.with(|told| told.1)
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.with(|told| told.0)
    }

    /// Goes on to `next`, unless the drawing of [`crate::Phase`] says that it can not.
    pub fn enter(&self, next: Phase) -> bool {
        self.with(|told| {
            let may = told.0.may(next);
            if may {
                told.0 = next;
            }
            may
        })
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.with(|told| change(&mut told.1));
    }
}
