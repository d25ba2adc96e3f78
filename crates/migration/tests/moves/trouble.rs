//! Moves with delays, limits, cancellations, ledgers that fail, and guests that do not hold still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use migration::{
    AutoConverge, CancelRefused, Clock, Departing, Departure, Departures, Failure, OnTimeout, Options, Phase, PostCopy,
    arrive, depart,
};

use crate::attempt::{Setting, attempt, expected, handle, host_clock, plan, small, watch_panics};
use crate::network::{Network, Way};
use crate::world::{Guest, Source, Target, World};

#[test]
fn streams_that_overtake_each_other_bring_the_same_memory() {
    watch_panics();
    for seed in 0..60 {
        let post_copy = [PostCopy::Off, PostCopy::AfterRounds(1), PostCopy::AfterRounds(3)][usize::from(seed % 3)];
        let mut setting = Setting::new(Options {
            streams: 1 + seed % 16,
            zstd: seed % 2 == 0,
            delta_cache_bytes: if seed % 4 < 2 { 1 << 20 } else { 0 },
            ..small(post_copy)
        });
        setting.guest.slow_rounds = 6;
        setting.guest.writes = (0..9)
            .map(|round| (0..70).filter(|page| (page * 7 + round) % 3 == 0).collect())
            .collect();
        let verdict = attempt(&setting, &Network::with_jitter(u64::from(seed) * 7919), &[], &handle());
        assert!(verdict.moved, "{verdict:?}");
    }
}

#[test]
fn every_option_moves_the_machine() {
    watch_panics();
    for zstd in [false, true] {
        for delta in [0, 4096 * 2, 1 << 20] {
            for streams in [1, 3, 16] {
                for post_copy in [PostCopy::Off, PostCopy::AfterRounds(0), PostCopy::AfterRounds(2)] {
                    let options = Options {
                        zstd,
                        delta_cache_bytes: delta,
                        streams,
                        ..small(post_copy)
                    };
                    let handle = handle();
                    let mut setting = Setting::new(options);
                    setting.guest.slow_rounds = 4;
                    let network = Network::new(None);
                    let verdict = attempt(&setting, &network, &[], &handle);
                    assert!(verdict.moved && verdict.fetched == 0, "{verdict:?}");
                    assert_eq!(network.dials(), u64::from(streams) + 1);
                    let progress = handle.progress();
                    assert_eq!(progress.post_copy, post_copy != PostCopy::Off);
                    assert_eq!(progress.total_bytes, 70 * 4096);
                    assert!(progress.downtime.is_some());
                    if post_copy == PostCopy::Off {
                        assert!(progress.round >= 4 && progress.remaining_bytes > 0);
                        assert!(progress.delta_pages > 0 || delta < 1 << 20, "{progress:?}");
                        assert!(progress.delta_pages == 0 || delta > 0, "{progress:?}");
                        assert!(progress.zero_pages > 0);
                    }
                }
            }
        }
    }
}

#[test]
fn a_ledger_that_fails_leaves_the_machine_paused_until_it_answers() {
    watch_panics();
    for (lies, moved) in [(false, false), (true, true)] {
        for post_copy in [PostCopy::Off, PostCopy::AfterRounds(1)] {
            let setting = Setting {
                ledger_failures: (1, lies),
                ..Setting::new(small(post_copy))
            };
            // The target asks while the source does not know: it is the first to write, unless the source wrote and did not
            // hear of it.
            let verdict = attempt(&setting, &Network::new(None), &[], &handle());
            assert_eq!(verdict.moved, moved, "{verdict:?}");
        }
    }
}

#[test]
fn a_start_that_fails_is_tried_again_at_the_target() {
    watch_panics();
    for post_copy in [PostCopy::Off, PostCopy::AfterRounds(1)] {
        let setting = Setting {
            start_failures: 2,
            ..Setting::new(small(post_copy))
        };
        assert!(attempt(&setting, &Network::new(None), &[], &handle()).moved);
    }
}

#[test]
fn a_cancellation_at_any_instant_leaves_one_machine() {
    watch_panics();
    let (mut cancelled, mut late) = (0, 0);
    for delay in 0..300_u32 {
        let post_copy = if delay % 2 == 0 {
            PostCopy::Off
        } else {
            PostCopy::AfterRounds(1)
        };
        let (setting, handle) = (Setting::new(small(post_copy)), handle());
        let canceller = handle.clone();
        let verdict = thread::scope(|scope| {
            let cancelling = scope.spawn(move || {
                thread::sleep(Duration::from_micros(u64::from(delay) * 10));
                canceller.cancel()
            });
            let verdict = attempt(&setting, &Network::new(None), &[], &handle);
            match cancelling.join().unwrap() {
                Ok(()) => assert!(!verdict.moved, "a cancellation was accepted"),
                Err(CancelRefused) => assert!(verdict.moved),
            }
            verdict
        });
        assert_eq!(handle.phase() == Phase::Cancelled, !verdict.moved);
        if verdict.moved { late += 1 } else { cancelled += 1 }
    }
    assert!(cancelled > 0, "{cancelled} cancelled, {late} too late");
}

#[test]
fn a_cancellation_before_the_start_leaves_one_machine() {
    watch_panics();
    let handle = handle();
    handle.cancel().unwrap();
    let verdict = attempt(&Setting::new(small(PostCopy::Off)), &Network::new(None), &[], &handle);
    assert!(matches!(verdict.why, Some(Failure::Cancelled)), "{verdict:?}");
}

/// A clock that runs as fast as it is looked at.
#[derive(Default)]
struct Racing(AtomicU64);

impl Clock for Racing {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(500, Ordering::Relaxed))
    }

    fn sleep(&self, time: Duration) {
        self.0
            .fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

/// Departs a guest that never holds still, to a target that takes everything.
fn restless(options: &Options) -> (Result<(), Failure>, Phase, u8) {
    watch_panics();
    let network = Network::new(None);
    let world = World::new();
    let guest = Guest {
        pages: 70,
        first: (0..70).collect(),
        writes: vec![(0..70).collect()],
        slow_rounds: u32::MAX,
    };
    let source = Source::new(&world, guest);
    let target = Target::new(&world, 70);
    let handle = handle();
    let outcome = thread::scope(|scope| {
        let mut resolver = world.ledger();
        let acceptor = Box::new(network.clone());
        scope.spawn(move || {
            let outside = migration::Arrivals {
                acceptor,
                resolver: &mut resolver,
                clock: host_clock(),
            };
            let _arrival = arrive(target, &expected(), outside);
        });
        let outside = Departures {
            dialer: &mut network.clone(),
            ledger: &mut world.ledger(),
            clock: Arc::new(Racing::default()),
            handle: handle.clone(),
        };
        let outcome = match depart(source, &plan(options.clone()), outside) {
            Departure::Stayed { why, runs, .. } => {
                runs.unwrap();
                Err(why)
            }
            Departure::Gone { .. } => Ok(()),
            Departure::Owing(owing) => Err(owing.why),
            Departure::Undecided(undecided) => Err(undecided.why),
        };
        network.cut();
        outcome
    });
    world.with(|truth| {
        assert_eq!(truth.faults, Vec::<String>::new());
        assert!(truth.source_runs != truth.target_runs);
    });
    (outcome, handle.phase(), handle.progress().throttle_percent)
}

#[test]
fn a_guest_that_never_holds_still_runs_into_the_deadline_its_options_name() {
    let ram_gib = 70.0 * 4096.0 / f64::from(1 << 30);
    let deadline = |seconds: f64| Some(Duration::from_secs_f64(seconds / ram_gib));
    let in_time = Options {
        completion_timeout_per_gib: deadline(100.0),
        progress_timeout: Duration::from_secs(100_000),
        ..Options::default()
    };
    let (outcome, phase, _) = restless(&in_time);
    assert!(matches!(outcome, Err(Failure::CompletionTimeout(_))), "{outcome:?}");
    assert_eq!(phase, Phase::Failed);

    let (outcome, phase, _) = restless(&Options {
        post_copy: PostCopy::AfterTimeout,
        ..in_time.clone()
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(phase, Phase::Succeeded);

    let (outcome, ..) = restless(&Options {
        on_timeout: OnTimeout::Finish,
        ..in_time.clone()
    });
    assert!(outcome.is_ok(), "{outcome:?}");

    let slowed = Options {
        auto_converge: Some(AutoConverge::default()),
        ..in_time
    };
    let (outcome, _, throttle) = restless(&slowed);
    assert!(matches!(outcome, Err(Failure::CompletionTimeout(_))), "{outcome:?}");
    assert!(throttle > 20, "{throttle}");

    let patient = Options {
        completion_timeout_per_gib: None,
        progress_timeout: Duration::from_secs(150),
        ..Options::default()
    };
    let (outcome, ..) = restless(&patient);
    assert!(matches!(outcome, Err(Failure::NoProgress(_))), "{outcome:?}");
}

/// A clock that only sleeping moves on.
#[derive(Default)]
struct Slept(Mutex<Duration>, AtomicBool);

impl Clock for Slept {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
        self.1.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_bandwidth_limit_is_kept_over_all_streams() {
    watch_panics();
    let network = Network::new(None);
    let world = World::new();
    // A hundred pages of noise, over four streams.
    let first: Vec<u64> = (0..70).chain(0..70).collect();
    let source = Source::new(
        &world,
        Guest {
            pages: 70,
            first,
            writes: vec![Vec::new()],
            slow_rounds: 0,
        },
    );
    assert_eq!(source.memory().bytes().len(), 70 * 4096);
    let target = Target::new(&world, 70);
    let clock = Arc::new(Slept::default());
    let handle = migration::Handle::new(Phase::Scheduling, 100_000);
    thread::scope(|scope| {
        let mut resolver = world.ledger();
        let acceptor = Box::new(network.clone());
        scope.spawn(move || {
            let outside = migration::Arrivals {
                acceptor,
                resolver: &mut resolver,
                clock: host_clock(),
            };
            let _arrival = arrive(target, &expected(), outside);
        });
        let options = Options {
            // By its memory, so small a machine would have a fifth of a second.
            completion_timeout_per_gib: None,
            downtime: Duration::from_mins(5),
            streams: 2,
            ..Options::default()
        };
        let outside = Departures {
            dialer: &mut network.clone(),
            ledger: &mut world.ledger(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            handle: handle.clone(),
        };
        let departure = depart(source, &plan(options), outside);
        assert!(matches!(departure, Departure::Gone { confirmed: true }));
    });
    assert!(network.passed(Way::There) > 280_000);
    // Two streams sleep side by side, so that this clock counts their sleeps twice at most.
    let slept = clock.now();
    assert!(
        slept >= Duration::from_millis(2600) && slept <= Duration::from_millis(6000),
        "{slept:?}"
    );
}
