//! Throughput of moving memory over loopback TCP, against a loop that copies the same memory into a buffer and writes it to
//! as many sockets.
//!
//! Prints a line for each number of streams: MiB/s of both, medians of rounds in which they take turns, and the ratio. The
//! migration is whole: hello, one round, hand-over, start. Both sides run in this process, so that processor time of sending
//! and of receiving compete as they do on one host.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a bench prints what it measured, and stops loudly"
)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use migration::{
    Acceptor, Arrival, Arrivals, Arriving, CHUNK_BYTES, Decision, Departing, Departure, Departures, Dialer, Expected,
    Fault, Handle, HostClock, Key, Ledger, LedgerError, Link, MachineId, Offers, Options, PAGE_BYTES, PageSet, Phase,
    Plan, RamLayout, Resolver, Section, SourceMemory, StateCost, TargetMemory, Wanted, arrive, depart,
};

/// Guest RAM, bytes.
const RAM_BYTES: usize = 512 << 20;
/// Rounds of each; the first warms up.
const ROUNDS: usize = 6;
/// Numbers of streams.
const STREAMS: [u8; 3] = [1, 2, 4];
const KEY: Key = Key {
    migration: [1; 16],
    token: [2; 16],
};

/// Guest RAM in chunks of its own locks: both sides are safe Rust here, and a lock per 256 KiB costs nothing.
struct Ram(Vec<RwLock<Box<[u8]>>>);

impl Ram {
    fn new(fill: bool) -> Arc<Self> {
        let mut noise = 1_u64;
        let chunk = |_| {
            let mut bytes = vec![0; CHUNK_BYTES].into_boxed_slice();
            if fill {
                for word in bytes.chunks_exact_mut(8) {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    word.copy_from_slice(&noise.to_le_bytes());
                }
            } else {
                // Pages are there before the clock runs: the peer's are too.
                bytes.fill(1);
                bytes.fill(0);
            }
            RwLock::new(bytes)
        };
        Arc::new(Self((0..RAM_BYTES / CHUNK_BYTES).map(chunk).collect()))
    }

    fn place(first: u64) -> (usize, usize) {
        let at = usize::try_from(first).expect("small") * PAGE_BYTES;
        (at / CHUNK_BYTES, at % CHUNK_BYTES)
    }

    fn copy_out(&self, first: u64, into: &mut [u8]) {
        let (chunk, at) = Self::place(first);
        into.copy_from_slice(&self.0[chunk].read().expect("no panic")[at..at + into.len()]);
    }
}

impl SourceMemory for Ram {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.copy_out(first, into);
        Ok(())
    }
}

impl TargetMemory for Ram {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.copy_out(first, into);
        Ok(())
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (chunk, at) = Self::place(first);
        self.0[chunk].write().expect("no panic")[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn place(&self, _page: u64, _bytes: Option<&[u8; PAGE_BYTES]>) -> Result<(), Fault> {
        Err("nothing is missing here".into())
    }
}

/// A machine that does nothing, at either end.
struct Machine(Arc<Ram>);

fn pages() -> u64 {
    (RAM_BYTES / PAGE_BYTES) as u64
}

impl Departing for Machine {
    type Memory = Ram;

    fn memory(&self) -> Arc<Ram> {
        Arc::clone(&self.0)
    }
    fn begin(&mut self) -> Result<PageSet, Fault> {
        Ok(PageSet::full(pages()))
    }
    fn take_dirty(&mut self) -> Result<PageSet, Fault> {
        Ok(PageSet::empty(pages()))
    }
    fn state_cost(&mut self) -> Result<StateCost, Fault> {
        Ok(StateCost::default())
    }
    fn throttle(&mut self, _percent: u8) {}
    fn pause(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<Section>, Fault> {
        Ok(Vec::new())
    }
    fn stay(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn departed(self) {}
}

impl Arriving for Machine {
    type Memory = Ram;

    fn memory(&self) -> Arc<Ram> {
        Arc::clone(&self.0)
    }
    fn can_post_copy(&self) -> bool {
        false
    }
    fn withhold(&mut self, _missing: &PageSet, _wanted: Wanted) -> Result<(), Fault> {
        Err("no post-copy here".into())
    }
    fn load(&mut self, _sections: Vec<Section>) -> Result<(), Fault> {
        Ok(())
    }
    fn start(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn discard(self) {}
}

struct Paper;

impl Ledger for Paper {
    fn decide(&mut self, _key: &Key, wanted: Decision) -> Result<Decision, LedgerError> {
        Ok(wanted)
    }
}

impl Resolver for Paper {
    fn ask(&mut self, _key: &Key) -> Result<Decision, LedgerError> {
        Ok(Decision::Stayed)
    }
}

struct Dial(SocketAddr);

impl Dialer for Dial {
    fn dial(&mut self) -> io::Result<Link> {
        Link::tcp(TcpStream::connect(self.0)?)
    }
}

struct Listen(TcpListener);

impl Acceptor for Listen {
    fn accept(&mut self, wait: Duration) -> io::Result<Option<Link>> {
        match self.0.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Link::tcp(stream).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(wait.min(Duration::from_millis(1)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn layout() -> RamLayout {
    RamLayout::new(&[(0, RAM_BYTES as u64)]).expect("whole pages")
}

fn migrate(source: &Arc<Ram>, target: &Arc<Ram>, streams: u8) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    let options = Options {
        streams,
        ..Options::default()
    };
    let plan = Plan {
        key: KEY,
        machine: MachineId([3; 16]),
        layout: layout(),
        options,
    };
    let machine = Machine(Arc::clone(target));
    let begin = Instant::now();
    thread::scope(|scope| {
        let arriving = scope.spawn(move || {
            let expected = Expected {
                key: KEY,
                machine: MachineId([3; 16]),
                layout: layout(),
                offers: Offers::none(),
                patience: Duration::from_secs(60),
            };
            let outside = Arrivals {
                acceptor: Box::new(Listen(listener)),
                resolver: &mut Paper,
                clock: Arc::new(HostClock::new()),
            };
            arrive(machine, &expected, outside)
        });
        let outside = Departures {
            dialer: &mut Dial(address),
            ledger: &mut Paper,
            clock: Arc::new(HostClock::new()),
            handle: Handle::new(Phase::Scheduling, 0),
        };
        let departure = depart(Machine(Arc::clone(source)), &plan, outside);
        let took = begin.elapsed();
        assert!(
            matches!(departure, Departure::Gone { confirmed: true }),
            "the machine stayed"
        );
        assert!(
            matches!(arriving.join(), Ok(Arrival::Running(_))),
            "the machine did not come"
        );
        took
    })
}

/// The peer: nothing but a copy and two system calls for each chunk.
fn plain(source: &Arc<Ram>, target: &Arc<Ram>, streams: u8) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let begin = Instant::now();
    thread::scope(|scope| {
        for stream in 0..usize::from(streams) {
            let mut out = TcpStream::connect(address).expect("a listener");
            let (mut from, _) = listener.accept().expect("a connection");
            scope.spawn(move || {
                let mut buffer = vec![0; CHUNK_BYTES];
                for chunk in source.0.iter().skip(stream).step_by(streams.into()) {
                    buffer.copy_from_slice(&chunk.read().expect("no panic"));
                    out.write_all(&buffer).expect("a receiver");
                }
            });
            scope.spawn(move || {
                for chunk in target.0.iter().skip(stream).step_by(streams.into()) {
                    from.read_exact(&mut chunk.write().expect("no panic"))
                        .expect("a sender");
                }
            });
        }
    });
    begin.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    let (source, target) = (Ram::new(true), Ram::new(false));
    for streams in STREAMS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let times = (migrate(&source, &target, streams), plain(&source, &target, streams));
            if round > 0 {
                ours.push(times.0);
                theirs.push(times.1);
            }
        }
        let mib = f64::from(u32::try_from(RAM_BYTES >> 20).expect("small"));
        let (ours, theirs) = (mib / median(ours), mib / median(theirs));
        println!(
            "memory phase over loopback, {streams} streams {ours:8.0} MiB/s  plain loop {theirs:8.0} MiB/s  ratio {:.2}",
            ours / theirs
        );
    }
    let equal = source
        .0
        .iter()
        .zip(&target.0)
        .all(|(a, b)| *a.read().expect("no panic") == *b.read().expect("no panic"));
    assert!(equal, "memory differs");
}
