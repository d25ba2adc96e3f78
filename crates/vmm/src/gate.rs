//! How vCPU threads are held, let go and sent home.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const HOLD: u8 = 0;
const RUN: u8 = 1;
const LEAVE: u8 = 2;
/// How long a slowed vCPU runs at a time: as long as a guest's tick, so that what it does for each is done.
pub(crate) const RUN_TIME: Duration = Duration::from_millis(10);
/// Most that is taken away, percent.
const THROTTLE_MAX: u8 = 99;

/// What a thread at the gate is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Go on; it was open all the time.
    Open,
    /// Go on; it was closed until now.
    Reopened,
    /// End.
    Leave,
}

/// A gate in front of the guest. It starts closed.
#[derive(Default)]
pub(crate) struct Gate {
    order: AtomicU8,
    /// Percent of their time that threads spend in front of it though it is open.
    throttle: AtomicU8,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Passes as soon as the gate is open. A vCPU thread that has run the guest calls this after each interruption.
    pub(crate) fn pass(&self) -> Passage {
        match self.order.load(Ordering::SeqCst) {
            RUN => Passage::Open,
            LEAVE => Passage::Leave,
            _ => self.wait(|order| order != HOLD),
        }
    }

    /// Threads are to spend this percentage of their time here.
    pub(crate) fn throttle(&self, percent: u8) {
        self.throttle.store(percent.min(THROTTLE_MAX), Ordering::SeqCst);
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Where it is throttled, has a thread that was inside for `ran` wait for as long as that entails, or until it is closed or the
    /// throttle changes. False if it has not run for long enough to wait.
    pub(crate) fn rest(&self, ran: Duration) -> bool {
        let percent = self.throttle.load(Ordering::SeqCst);
        if percent == 0 || ran < RUN_TIME {
            return false;
        }
        // More than that is not running but a time in which nobody was slowed.
        let ran = ran.min(2 * RUN_TIME);
        let until = Instant::now() + ran * u32::from(percent) / u32::from(100 - percent);
        let mut waiting = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let same = self.throttle.load(Ordering::SeqCst) == percent;
            if left.is_zero() || !same || self.order.load(Ordering::SeqCst) != RUN {
                return true;
            }
            let woken = self.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For a thread whose vCPU is finished: counts as held until it may leave.
    pub(crate) fn wait_to_leave(&self) {
        self.wait(|order| order == LEAVE);
    }

    fn wait(&self, enough: impl Fn(u8) -> bool) -> Passage {
        let mut waiting = self.lock();
        *waiting += 1;
        self.changed.notify_all();
        loop {
            let order = self.order.load(Ordering::SeqCst);
            if enough(order) {
                *waiting -= 1;
                return if order == LEAVE {
                    Passage::Leave
                } else {
                    Passage::Reopened
                };
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens for all.
    pub(crate) fn open(&self) {
        self.order(RUN);
    }

    /// Closes. Whoever is inside the guest has to be kicked; then [`Gate::wait_for`].
    pub(crate) fn close(&self) {
        self.order(HOLD);
    }

    /// Sends all home, from within the guest after a kick.
    pub(crate) fn dismiss(&self) {
        self.order(LEAVE);
    }

    /// Blocks until `count` threads wait at the closed gate.
    pub(crate) fn wait_for(&self, count: usize) {
        let mut waiting = self.lock();
        while *waiting < count {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn order(&self, order: u8) {
        // Under the lock, so that nobody looks, decides to wait, and misses the call.
        let _waiting = self.lock();
        self.order.store(order, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    #[test]
    fn holds_all_lets_all_go_and_sends_all_home() {
        let gate = Gate::default();
        let steps = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while gate.pass() != Passage::Leave {
                        steps.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                });
            }
            scope.spawn(|| gate.wait_to_leave());
            for _ in 0..20 {
                gate.close();
                gate.wait_for(4);
                let before = steps.load(Ordering::SeqCst);
                thread::yield_now();
                assert_eq!(steps.load(Ordering::SeqCst), before, "nobody moves while held");
                gate.open();
                while steps.load(Ordering::SeqCst) == before {
                    thread::yield_now();
                }
            }
            gate.dismiss();
        });
    }

    #[test]
    fn who_is_throttled_rests_in_proportion_and_no_longer_than_the_gate_is_open() {
        let gate = Gate::default();
        gate.open();
        assert!(!gate.rest(RUN_TIME), "not throttled");
        gate.throttle(75);
        assert!(!gate.rest(RUN_TIME / 2), "has not run for long enough");
        let begin = Instant::now();
        assert!(gate.rest(RUN_TIME));
        assert!(begin.elapsed() >= RUN_TIME * 3, "{:?}", begin.elapsed());
        for wake in [|gate: &Gate| gate.close(), |gate: &Gate| gate.throttle(0)] {
            gate.open();
            gate.throttle(99);
            let begin = Instant::now();
            thread::scope(|scope| {
                let resting = scope.spawn(|| gate.rest(2 * RUN_TIME));
                thread::sleep(RUN_TIME);
                wake(&gate);
                assert!(resting.join().unwrap());
            });
            assert!(begin.elapsed() < 2 * RUN_TIME * 95);
        }
    }

    #[test]
    fn tells_whether_it_was_closed() {
        let gate = Gate::default();
        gate.open();
        assert_eq!(gate.pass(), Passage::Open);
        gate.close();
        thread::scope(|scope| {
            let passing = scope.spawn(|| gate.pass());
            gate.wait_for(1);
            gate.open();
            assert_eq!(passing.join().unwrap(), Passage::Reopened);
        });
    }
}
