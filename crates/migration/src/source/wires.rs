//! The source's end of all streams: the threads that serve them and what those tell the one that decides.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::packer::{Packed, Packer};
use crate::clock::Clock;
use crate::error::Failure;
use crate::link::{Dialer, HangUp, Link};
use crate::machine::{Fault, SourceMemory};
use crate::options::Options;
use crate::outbox::Outbox;
use crate::page_set::{PAGE_BYTES, SharedPages};
use crate::progress::Handle;
use crate::wire::{
    Hello, Key, Message, Offers, Parameters, Purpose, StreamHello, VERSION_MAX, VERSION_MIN, WireError, read_frame,
};
use crate::{MachineId, RamLayout};

/// How often deadlines and cancellation are looked at while nothing happens.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// The target may give up on a source from which nothing came for this long, milliseconds.
const IDLE_TIMEOUT_MS: u32 = 150_000;

/// What is to be moved and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which attempt. Never used before, for any machine.
    pub key: Key,
    /// Which machine.
    pub machine: MachineId,
    /// Its RAM.
    pub layout: RamLayout,
    /// How.
    pub options: Options,
}

/// What a thread tells.
#[derive(Debug)]
pub(super) enum Event {
    Control(Message),
    Lost(Failure),
    /// A page stream was accepted.
    Up,
    /// A page stream has sent all of its part of what is owed.
    Pushed,
}

/// What a page stream is to do.
pub(super) enum Job {
    /// Send this stream's part of a set, then the end of the round.
    Round {
        set: Arc<SharedPages>,
        round: u32,
        stop: Arc<AtomicBool>,
    },
    /// Send this stream's part of what the target still misses.
    Push { owed: Arc<SharedPages> },
}

/// Figures that all threads add to.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) wire_bytes: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) zero_pages: AtomicU64,
    pub(super) delta_pages: AtomicU64,
}

impl Counters {
    pub(super) fn add(&self, packed: &Packed<'_>, pages: u32) {
        self.wire_bytes.fetch_add(packed.frame.len() as u64, Ordering::Relaxed);
        self.pages.fetch_add(pages.into(), Ordering::Relaxed);
        self.zero_pages.fetch_add(packed.zero_pages.into(), Ordering::Relaxed);
        self.delta_pages.fetch_add(packed.delta_pages.into(), Ordering::Relaxed);
    }
}

/// What every page stream shares.
struct Shared {
    memory: Arc<dyn SourceMemory>,
    clock: Arc<dyn Clock>,
    handle: Handle,
    counters: Arc<Counters>,
    ended: Arc<AtomicBool>,
    offers: Offers,
    cache_bytes: usize,
    streams: u8,
    events: Sender<Event>,
}

/// All streams of a migration. Dropping it ends them.
pub(super) struct Wires {
    pub(super) key: Key,
    pub(super) handle: Handle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Arc<Counters>,
    pub(super) offers: Offers,
    pub(super) round_trip: Duration,
    /// When the guest was paused for good.
    pub(super) paused_at: Duration,
    pub(super) outbox: Outbox,
    events: Receiver<Event>,
    jobs: Vec<Sender<Job>>,
    hang_ups: Vec<HangUp>,
    threads: Vec<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    /// After the departure no cancellation is looked at any more.
    departed: bool,
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.outbox.close();
        self.jobs.clear();
        for hang_up in &self.hang_ups {
            hang_up();
        }
        self.outbox.join();
        for thread in self.threads.drain(..) {
            // Its panic, if it had one, was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// What opening needs.
pub(super) struct Opening<'a> {
    pub(super) plan: &'a Plan,
    pub(super) dialer: &'a mut dyn Dialer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) handle: Handle,
    pub(super) memory: Arc<dyn SourceMemory>,
    pub(super) purpose: Purpose,
}

impl Wires {
    /// Opens the control stream, agrees with the target, and opens the page streams.
    pub(super) fn open(opening: Opening<'_>) -> Result<Self, Failure> {
        let Opening {
            plan,
            dialer,
            clock,
            handle,
            memory,
            purpose,
        } = opening;
        let Link {
            reader,
            writer,
            hang_up,
        } = dialer.dial().map_err(Failure::Connect)?;
        let (events, inbox) = mpsc::channel();
        let told = events.clone();
        let listener = thread::spawn(move || listen(reader, &told));
        let mut wires = Self {
            key: plan.key,
            handle,
            clock,
            counters: Arc::default(),
            offers: Offers::none(),
            round_trip: Duration::ZERO,
            paused_at: Duration::ZERO,
            outbox: Outbox::new(writer),
            events: inbox,
            jobs: Vec::new(),
            hang_ups: vec![hang_up],
            threads: vec![listener],
            ended: Arc::default(),
            departed: purpose == Purpose::Fetch,
        };
        let (version, streams) = wires.greet(plan, purpose)?;
        let shared = Arc::new(Shared {
            memory,
            clock: Arc::clone(&wires.clock),
            handle: wires.handle.clone(),
            counters: Arc::clone(&wires.counters),
            ended: Arc::clone(&wires.ended),
            offers: wires.offers,
            cache_bytes: plan.options.delta_cache_bytes / usize::from(streams),
            streams,
            events,
        });
        for stream in 0..streams {
            let link = dialer.dial().map_err(Failure::Connect)?;
            let (jobs, inbox) = mpsc::channel();
            wires.hang_ups.push(link.hang_up.clone());
            wires.jobs.push(jobs);
            let (shared, hello) = (
                Arc::clone(&shared),
                StreamHello {
                    version,
                    key: plan.key,
                    stream,
                    purpose,
                },
            );
            wires.threads.push(thread::spawn(move || {
                if let Err(failure) = serve(link, hello, &inbox, &shared) {
                    // Nobody listens any more when the migration is over.
                    let _ = shared.events.send(Event::Lost(failure));
                }
            }));
        }
        Ok(wires)
    }

    /// Hello, welcome, parameters: the version and how many page streams.
    fn greet(&mut self, plan: &Plan, purpose: Purpose) -> Result<(u16, u8), Failure> {
        let begin = self.clock.now();
        let (offers, streams) = (plan.options.offers(), plan.options.streams.clamp(1, crate::STREAMS_MAX));
        self.outbox.send(&Message::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            key: plan.key,
            machine: plan.machine,
            layout: plan.layout.digest(),
            pages: plan.layout.pages(),
            offers,
            streams,
            purpose,
        }));
        let welcome = match self.message(begin.saturating_add(plan.options.progress_timeout))? {
            Some(Message::Welcome(welcome)) => welcome,
            Some(_) => return Err(Failure::Protocol("no welcome after the hello")),
            None => return Err(Failure::NoProgress(plan.options.progress_timeout)),
        };
        self.round_trip = self.clock.now().saturating_sub(begin);
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version)
            || !(1..=streams).contains(&welcome.streams)
            || !offers.has(welcome.offers)
        {
            return Err(Failure::Protocol("the welcome takes what was not offered"));
        }
        self.offers = welcome.offers;
        self.outbox.send(&Message::Parameters(Parameters {
            offers: welcome.offers,
            streams: welcome.streams,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
        }));
        Ok((welcome.version, welcome.streams))
    }

    /// Waits until every page stream was accepted.
    pub(super) fn await_streams(&mut self, patience: Duration) -> Result<(), Failure> {
        let until = self.clock.now().saturating_add(patience);
        for _ in 0..self.jobs.len() {
            loop {
                match self.next()? {
                    Some(Event::Up) => break,
                    Some(Event::Control(_)) => return Err(Failure::Protocol("a message before the streams are up")),
                    None if self.clock.now() >= until => return Err(Failure::NoProgress(patience)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(super) fn assign(&self, job: impl Fn() -> Job) {
        for stream in &self.jobs {
            // A thread that has ended has said why.
            let _ = stream.send(job());
        }
    }

    /// From now on a cancellation changes nothing.
    pub(super) fn set_departed(&mut self) {
        self.departed = true;
    }

    /// The next event, or none after a tick.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Failure> {
        if !self.departed && self.handle.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        match self.events.recv_timeout(TICK) {
            Ok(Event::Lost(failure)) => Err(failure),
            Ok(Event::Control(Message::Abort { key, text })) if key == self.key => Err(Failure::PeerGaveUp(text)),
            Ok(Event::Control(Message::Refuse { reason, text })) => Err(Failure::Refused { reason, text }),
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Protocol("no stream is left")),
        }
    }

    /// The next message, or none when `until` has come.
    pub(super) fn message(&mut self, until: Duration) -> Result<Option<Message>, Failure> {
        loop {
            match self.next()? {
                Some(Event::Control(message)) => return Ok(Some(message)),
                None if self.clock.now() >= until => return Ok(None),
                _ => {}
            }
        }
    }
}

/// Reads the control stream until it breaks or nobody listens.
fn listen(mut reader: Box<dyn std::io::Read + Send>, events: &Sender<Event>) {
    let mut payload = Vec::new();
    loop {
        let event = match read_frame(&mut reader, &mut payload).and_then(|kind| Message::decode(kind, &payload)) {
            Ok(message) => Event::Control(message),
            Err(error) => Event::Lost(Failure::Link {
                stream: "control",
                error,
            }),
        };
        let last = matches!(event, Event::Lost(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn broken(error: WireError) -> Failure {
    Failure::Link { stream: "page", error }
}

fn unreadable(error: Fault) -> Failure {
    Failure::Machine {
        what: "read its memory",
        error,
    }
}

/// One page stream: says hello, then does its jobs until there are none.
fn serve(link: Link, hello: StreamHello, jobs: &Receiver<Job>, shared: &Shared) -> Result<(), Failure> {
    let Link {
        mut reader,
        mut writer,
        hang_up: _,
    } = link;
    let write = |writer: &mut Box<dyn Write + Send>, frame: &[u8]| {
        writer
            .write_all(frame)
            .and_then(|()| writer.flush())
            .map_err(|error| broken(WireError::Io(error)))
    };
    write(&mut writer, &Message::StreamHello(hello).encode())?;
    let mut payload = Vec::new();
    let kind = read_frame(&mut reader, &mut payload).map_err(broken)?;
    match Message::decode(kind, &payload).map_err(broken)? {
        Message::StreamWelcome => {}
        Message::Refuse { reason, text } => return Err(Failure::Refused { reason, text }),
        _ => return Err(Failure::Protocol("no welcome on a page stream")),
    }
    let told = shared.events.send(Event::Up);
    let mut packer = Packer::new(shared.offers, shared.cache_bytes);
    let mut send = |writer: &mut Box<dyn Write + Send>, chunk: u64, mask: u64, round: u32| {
        let packed = packer.pack(&*shared.memory, chunk, mask, round).map_err(unreadable)?;
        shared.handle.limiter().take(packed.frame.len(), &*shared.clock, || {
            shared.ended.load(Ordering::Acquire)
        });
        write(writer, packed.frame)?;
        shared.counters.add(&packed, mask.count_ones());
        Ok::<(), Failure>(())
    };
    let own = |set: &SharedPages| (u64::from(hello.stream)..set.chunk_count()).step_by(shared.streams.into());
    for job in jobs.iter().take_while(|_| told.is_ok()) {
        match job {
            Job::Round { set, round, stop } => {
                for chunk in own(&set) {
                    if stop.load(Ordering::Acquire) || shared.ended.load(Ordering::Acquire) {
                        break;
                    }
                    let mask = set.take_chunk(chunk);
                    if mask != 0 {
                        send(&mut writer, chunk, mask, round)?;
                    }
                }
                write(&mut writer, &Message::RoundEnd(round).encode())?;
            }
            Job::Push { owed } => {
                for chunk in own(&owed) {
                    let mask = owed.take_chunk(chunk);
                    if mask != 0 && !shared.ended.load(Ordering::Acquire) {
                        send(&mut writer, chunk, mask, 0)?;
                    }
                }
                // Nobody listens any more when the migration is over.
                let _ = shared.events.send(Event::Pushed);
            }
        }
    }
    Ok(())
}

/// Guest RAM in so many pages, bytes.
pub(super) fn ram_bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_BYTES as u64)
}
