//! Looking again for a little while before sleeping.
//!
//! A driver that waits for each answer sends its next request a few microseconds after it. A worker that sleeps meanwhile costs a
//! kick (an exit of the guest), a wake-up and a context switch; one that looks at the ring instead costs those microseconds. So
//! workers look, but only as long as that has paid of late, and only where there is a processor to spare. Nor do they look for
//! a driver that keeps many requests in flight: it is served better by batches, which a kick for each of them makes larger.

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest look. About what a kick and a wake-up cost: twice the best is never exceeded.
const LONGEST: Duration = Duration::from_micros(20);
/// Looks in vain, one after the other, until they are given up.
const CREDIT_MAX: u8 = 8;
/// Sleeps until a look is tried again.
const TRY_AGAIN: u8 = 32;
/// Turns of a worker that a request from a fast store takes to be finished: begun, submitted, woken, done.
const QUICK_TURNS: u8 = 4;
/// Times a worker has to run out of requests, without many in flight before, until a driver no longer counts as one that keeps
/// many in flight.
const DEEP_FOR: u8 = 16;
/// Requests in flight at once of a driver that waits for each answer; one more than that, for one that looks ahead.
const SHALLOW: usize = 2;

/// Whether looking pays, for one queue.
#[derive(Debug)]
pub(crate) struct Spin {
    allowed: bool,
    credit: u8,
    sleeps: u8,
    /// Since a request was begun.
    turns: u8,
    /// Times left of [`DEEP_FOR`].
    deep: u8,
}

impl Spin {
    pub(crate) fn new() -> Self {
        static SPARE: OnceLock<bool> = OnceLock::new();
        let spare = || std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        Self {
            allowed: *SPARE.get_or_init(spare),
            credit: CREDIT_MAX,
            sleeps: 0,
            turns: 0,
            deep: 0,
        }
    }

    /// A request was begun; with it, there are this many in flight.
    pub(crate) const fn begun(&mut self, in_flight: usize) {
        self.turns = 0;
        if in_flight > SHALLOW {
            self.deep = DEEP_FOR;
        }
    }

    /// With requests in flight and nothing new: whether to take another turn before a kick is asked for. It will not have to
    /// be, if they are finished by then.
    pub(crate) const fn takes_another_turn(&mut self) -> bool {
        let quick = self.allowed && self.deep == 0 && self.credit > 0 && self.turns < QUICK_TURNS;
        if quick {
            self.turns += 1;
        }
        quick
    }

    /// With nothing in flight: calls `next` until it finds something, or the time for it is over. `next` gives `Some(None)` for "nothing yet".
    pub(crate) fn look<T>(&mut self, mut next: impl FnMut() -> Option<Option<T>>) -> Option<Option<T>> {
        if self.deep > 0 {
            self.deep -= 1;
            return Some(None);
        }
        if !self.is_worthwhile() {
            return Some(None);
        }
        let begin = Instant::now();
        loop {
            let found = next();
            if !matches!(found, Some(None)) {
                self.credit = CREDIT_MAX;
                return found;
            }
            if begin.elapsed() >= LONGEST {
                self.credit = self.credit.saturating_sub(1);
                return found;
            }
            spin_loop();
        }
    }

    fn is_worthwhile(&mut self) -> bool {
        if self.credit > 0 || !self.allowed {
            return self.allowed;
        }
        self.sleeps = (self.sleeps + 1) % TRY_AGAIN;
        self.sleeps == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin() -> Spin {
        Spin {
            allowed: true,
            credit: CREDIT_MAX,
            sleeps: 0,
            turns: 0,
            deep: 0,
        }
    }

    #[test]
    fn takes_a_few_turns_more_while_it_pays() {
        let mut spin = spin();
        for _ in 0..2 {
            let turns = (0..10).filter(|_| spin.takes_another_turn()).count();
            assert_eq!(turns, usize::from(QUICK_TURNS));
            spin.begun(1);
        }
        spin.begun(SHALLOW + 1);
        assert!(!spin.takes_another_turn());
        for _ in 0..DEEP_FOR {
            assert_eq!(spin.look(|| -> Option<Option<()>> { panic!("looked") }), Some(None));
            spin.begun(SHALLOW);
        }
        assert_eq!(spin.look(|| Some(Some(1))), Some(Some(1)));
        spin.begun(1);
        assert!(spin.takes_another_turn());
        spin.credit = 0;
        assert!(!spin.takes_another_turn());
    }

    #[test]
    fn looks_only_as_long_as_it_pays() {
        let mut spin = spin();
        let mut calls = 0_u32;
        let looks: Vec<bool> = (0..200)
            .map(|_| {
                let before = calls;
                let found = spin.look(|| {
                    calls += 1;
                    Some(None::<()>)
                });
                assert_eq!(found, Some(None));
                calls > before
            })
            .collect();
        assert!(looks[..8].iter().all(|&looked| looked));
        let later = looks[8..].iter().filter(|&&looked| looked).count();
        assert_eq!(later, 192 / usize::from(TRY_AGAIN));
        // One that finds something makes it worthwhile again.
        spin.sleeps = TRY_AGAIN - 1;
        assert_eq!(spin.look(|| Some(Some(7))), Some(Some(7)));
        assert_eq!(spin.look(|| Some(Some(8))), Some(Some(8)));
        // A ring that makes no sense is found at once.
        assert_eq!(spin.look(|| None::<Option<()>>), None);
    }

    #[test]
    fn never_looks_without_a_processor_to_spare() {
        let mut spin = Spin {
            allowed: false,
            ..spin()
        };
        assert_eq!(spin.look(|| -> Option<Option<()>> { panic!("looked") }), Some(None));
    }
}
