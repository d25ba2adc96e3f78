//! The streams are cut after every byte, both ways: exactly one machine runs afterwards, and it has lost nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use migration::{Options, PostCopy};

use crate::attempt::{Setting, attempt, handle, measure, small, watch_panics};
use crate::network::{Network, Way};

/// Attempts at the same time: most of one is waiting for threads to take turns.
const WORKERS: usize = 6;

/// Runs `one` with a cut after every byte of `totals`, both ways.
fn everywhere(totals: [u64; 2], one: impl Fn(Way, u64) + Sync) {
    watch_panics();
    for (way, total) in [(Way::There, totals[0]), (Way::Back, totals[1])] {
        let next = AtomicU64::new(0);
        let failed = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    loop {
                        let after = next.fetch_add(1, Ordering::SeqCst);
                        if after > total || !failed.lock().unwrap().is_empty() {
                            return;
                        }
                        let run = || one(way, after);
                        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                            failed.lock().unwrap().push(after);
                        }
                    }
                });
            }
        });
        assert_eq!(
            *failed.lock().unwrap(),
            [0_u64; 0],
            "{way:?}: cut after these bytes of {total}"
        );
    }
}

/// Cuts after every byte of a migration with these settings; returns in how many cases the machine moved and stayed.
fn cut_everywhere(setting: &Setting) -> (u64, u64) {
    let (moved, stayed) = (AtomicU64::new(0), AtomicU64::new(0));
    everywhere(measure(setting), |way, after| {
        let verdict = attempt(setting, &Network::new(Some((way, after))), &[], &handle());
        if verdict.moved { &moved } else { &stayed }.fetch_add(1, Ordering::SeqCst);
    });
    (moved.into_inner(), stayed.into_inner())
}

fn both_outcomes(setting: &Setting) {
    let (moved, stayed) = cut_everywhere(setting);
    assert!(moved > 50 && stayed > 300, "{moved} moved, {stayed} stayed");
}

#[test]
fn pre_copy_is_cut_after_every_byte() {
    both_outcomes(&Setting::new(small(PostCopy::Off)));
}

#[test]
fn pre_copy_is_cut_after_every_byte_while_the_ledger_is_out_of_reach() {
    both_outcomes(&Setting {
        ledger_unreachable: true,
        ..Setting::new(small(PostCopy::Off))
    });
}

#[test]
fn hybrid_is_cut_after_every_byte() {
    both_outcomes(&Setting::new(small(PostCopy::AfterRounds(1))));
}

#[test]
fn post_copy_is_cut_after_every_byte_while_the_ledger_is_out_of_reach() {
    both_outcomes(&Setting {
        ledger_unreachable: true,
        ..Setting::new(small(PostCopy::AfterRounds(0)))
    });
}

/// Without compression the pages are raw: cut inside of one at every byte.
#[test]
fn raw_pages_are_cut_after_every_byte() {
    let mut setting = Setting::new(Options {
        zstd: false,
        delta_cache_bytes: 0,
        ..small(PostCopy::Off)
    });
    setting.guest.first = vec![3];
    setting.guest.writes = vec![Vec::new()];
    setting.guest.slow_rounds = 0;
    both_outcomes(&setting);
}

/// A post-copy that broke once breaks again at every byte of being fetched.
#[test]
fn fetching_is_cut_after_every_byte() {
    watch_panics();
    let mut setting = Setting::new(Options {
        zstd: false,
        delta_cache_bytes: 0,
        ..small(PostCopy::AfterRounds(0))
    });
    setting.guest.first = vec![3, 66];
    setting.guest.writes = vec![Vec::new()];
    // Within the two pages that follow the start, whatever frames they come in.
    let broken = measure(&setting)[0] - 4500;
    let whole = Network::new(None);
    let verdict = attempt(
        &setting,
        &Network::new(Some((Way::There, broken))),
        std::slice::from_ref(&whole),
        &handle(),
    );
    assert_eq!((verdict.moved, verdict.fetched), (true, 1));
    everywhere([whole.passed(Way::There), whole.passed(Way::Back)], |way, after| {
        let spares = [Network::new(Some((way, after)))];
        let verdict = attempt(&setting, &Network::new(Some((Way::There, broken))), &spares, &handle());
        assert!(verdict.moved && verdict.fetched >= 1, "{verdict:?}");
    });
}
