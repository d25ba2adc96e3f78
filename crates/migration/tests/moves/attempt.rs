//! One attempt to move the fake machine, with everything that follows until it is decided, and the referee's verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use migration::{
    Arrival, Arrivals, Clock, Departure, Departures, Expected, Failure, Handle, HostClock, Key, MachineId, Offers,
    Options, Phase, Plan, PostCopy, RamLayout, Resolver, arrive, depart,
};

use crate::network::{Network, Way};
use crate::world::{Guest, Silent, Source, Target, World};

pub(crate) const PAGES: u64 = 70;

/// Panics anywhere in the process.
pub(crate) static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics of threads that nobody joins.
pub(crate) fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
}

pub(crate) fn key(number: u8) -> Key {
    Key {
        migration: [number; 16],
        token: [number ^ 0x55; 16],
    }
}

pub(crate) fn layout() -> RamLayout {
    RamLayout::new(&[(0, 65 * 4096), (1 << 32, 5 * 4096)]).unwrap()
}

pub(crate) fn plan(options: Options) -> Plan {
    Plan {
        key: key(1),
        machine: MachineId([9; 16]),
        layout: layout(),
        options,
    }
}

pub(crate) fn expected() -> Expected {
    Expected {
        key: key(1),
        machine: MachineId([9; 16]),
        layout: layout(),
        offers: Offers::ZSTD.with(Offers::DELTA),
        patience: Duration::from_secs(60),
    }
}

pub(crate) fn guest() -> Guest {
    Guest {
        pages: PAGES,
        first: vec![0, 3, 5, 6, 66],
        writes: vec![vec![3, 66], vec![3, 5, 67], vec![3, 66]],
        slow_rounds: 2,
    }
}

/// Compressed, with deltas, so that a whole migration is about two thousand bytes.
pub(crate) fn small(post_copy: PostCopy) -> Options {
    let downtime = if post_copy == PostCopy::Off {
        Duration::from_mins(5)
    } else {
        Duration::ZERO
    };
    Options {
        downtime,
        post_copy,
        zstd: true,
        delta_cache_bytes: 1 << 20,
        // By its size the deadline would be a fifth of a second.
        completion_timeout_per_gib: None,
        ..Options::default()
    }
}

/// What an attempt is made with.
pub(crate) struct Setting {
    pub(crate) guest: Guest,
    pub(crate) options: Options,
    /// The target can not reach the ledger while the streams are cut.
    pub(crate) ledger_unreachable: bool,
    /// Calls of the source's ledger that fail, and whether they write all the same.
    pub(crate) ledger_failures: (u32, bool),
    pub(crate) start_failures: u32,
}

impl Setting {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            guest: guest(),
            options,
            ledger_unreachable: false,
            ledger_failures: (0, false),
            start_failures: 0,
        }
    }
}

/// Where the machine was in the end, and why not at the target.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) moved: bool,
    pub(crate) why: Option<Failure>,
    pub(crate) fetched: u32,
}

pub(crate) fn host_clock() -> Arc<dyn Clock> {
    Arc::new(HostClock::new())
}

/// Moves the machine over `network`, then over `spares` for as long as pages are missing, then over networks that work.
pub(crate) fn attempt(setting: &Setting, network: &Network, spares: &[Network], handle: &Handle) -> Verdict {
    let world = World::new();
    let source = Source::new(&world, setting.guest.clone());
    let source_ram = source.ram();
    let mut target = Target::new(&world, setting.guest.pages);
    target.start_failures = setting.start_failures;
    let target_ram = target.ram();
    let (arrived, departed) = thread::scope(|scope| {
        let mut ledger = world.ledger();
        let acceptor = Box::new(network.clone());
        let unreachable = setting.ledger_unreachable;
        let arriving = scope.spawn(move || {
            let resolver: &mut dyn Resolver = if unreachable { &mut Silent } else { &mut ledger };
            arrive(
                target,
                &expected(),
                Arrivals {
                    acceptor,
                    resolver,
                    clock: host_clock(),
                },
            )
        });
        let mut ledger = world.ledger();
        (ledger.failures, ledger.lies) = setting.ledger_failures;
        let mut dialer = network.clone();
        let outside = Departures {
            dialer: &mut dialer,
            ledger: &mut ledger,
            clock: host_clock(),
            handle: handle.clone(),
        };
        let departure = depart(source, &plan(setting.options.clone()), outside);
        // A target that was never reached waits for somebody who will not come.
        network.cut();
        (arriving.join().unwrap(), departure)
    });
    let verdict = settle(&world, arrived, departed, spares);
    judge(&world, &verdict, &source_ram.bytes(), &target_ram.bytes(), handle);
    verdict
}

/// What the daemons do when the streams are gone, until nothing is open.
fn settle(
    world: &World,
    mut arrival: Arrival<Target>,
    mut departure: Departure<Source>,
    spares: &[Network],
) -> Verdict {
    let mut spares = spares.iter().cloned();
    let mut fetched = 0;
    loop {
        departure = match departure {
            Departure::Undecided(undecided) => undecided.decide(&mut world.ledger()),
            other => other,
        };
        arrival = match (arrival, &departure) {
            (Arrival::InDoubt(doubt), _) => doubt.resolve(&mut world.ledger()),
            (Arrival::NotStarted(held), _) => held.start(),
            (other, _) => other,
        };
        (arrival, departure) = match (arrival, departure) {
            (Arrival::Running(_), Departure::Gone { .. }) => {
                return Verdict {
                    moved: true,
                    why: None,
                    fetched,
                };
            }
            (Arrival::Running(_), Departure::Owing(owing)) => {
                owing.release();
                return Verdict {
                    moved: true,
                    why: None,
                    fetched,
                };
            }
            (Arrival::Discarded(_), Departure::Stayed { why, runs, .. }) => {
                runs.unwrap();
                return Verdict {
                    moved: false,
                    why: Some(why),
                    fetched,
                };
            }
            (Arrival::Waiting(waiting), Departure::Owing(owing)) => {
                fetched += 1;
                let network = spares.next().unwrap_or_else(|| Network::new(None));
                thread::scope(|scope| {
                    let acceptor = Box::new(network.clone());
                    let fetching = scope.spawn(move || waiting.fetch(acceptor, host_clock()));
                    let mut dialer = network.clone();
                    let served = owing.serve(&mut dialer, host_clock());
                    network.cut();
                    let departure = match served {
                        Ok(()) => Departure::Gone { confirmed: true },
                        Err(owing) => Departure::Owing(*owing),
                    };
                    (fetching.join().unwrap(), departure)
                })
            }
            (arrival @ (Arrival::InDoubt(_) | Arrival::NotStarted(_)), departure) => (arrival, departure),
            (arrival, departure) => panic!("{arrival:?} does not go with {}", name(&departure)),
        };
    }
}

fn name(departure: &Departure<Source>) -> String {
    match departure {
        Departure::Gone { confirmed } => format!("gone, confirmed {confirmed}"),
        Departure::Owing(owing) => format!("owing: {}", owing.why),
        Departure::Stayed { why, .. } => format!("stayed: {why}"),
        Departure::Undecided(undecided) => format!("undecided: {}", undecided.why),
    }
}

fn judge(world: &World, verdict: &Verdict, source: &[u8], target: &[u8], handle: &Handle) {
    world.with(|truth| {
        assert_eq!(truth.faults, Vec::<String>::new());
        assert_eq!(
            (truth.source_runs, truth.target_runs),
            (!verdict.moved, verdict.moved),
            "{verdict:?}"
        );
        assert_eq!((truth.departed, truth.discarded), (verdict.moved, !verdict.moved));
        if verdict.moved {
            let differ = (0..).zip(truth.memory.chunks(4096).zip(target.chunks(4096)));
            let differ: Vec<u64> = differ.filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect();
            assert_eq!(differ, [], "pages that differ");
        } else if !truth.memory.is_empty() {
            assert!(truth.memory == source, "the guest was paused and lost something");
        }
    });
    assert!(handle.phase().is_over(), "{:?}", handle.phase());
    assert_eq!(handle.phase() == Phase::Succeeded, verdict.moved);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

/// A handle for an attempt that the daemon has let go.
pub(crate) fn handle() -> Handle {
    Handle::new(Phase::Scheduling, 0)
}

/// Bytes that pass each way when nothing is cut.
pub(crate) fn measure(setting: &Setting) -> [u64; 2] {
    let network = Network::new(None);
    let verdict = attempt(setting, &network, &[], &handle());
    assert!(verdict.moved, "{verdict:?}");
    [network.passed(Way::There), network.passed(Way::Back)]
}
