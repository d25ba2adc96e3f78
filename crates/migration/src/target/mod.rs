//! The side that gets the machine.
//!
//! ```text
//!   Greeting ──▶ Joining ──▶ Copying ──▶ Sealed ──▶ InDoubt ──▶ Started ──▶ Pulling ──▶ running
//!      │            │           │           │        │ │  ▲        │          │  ▲
//!      ▼            ▼           ▼           ▼        │ │  │        ▼          ▼  │ fetch()
//!      └────────────┴──────── discarded ────┴────────┘ └──┘    NotStarted   Waiting
//!                                             stayed   resolve()
//! ```
//!
//! *Greeting*: waits for a control stream with the right key; strangers are refused. *Joining*: waits for the page streams.
//! *Copying*: pages go to memory as they come. *Sealed*: all that comes before the start is here and loaded. Up to here every
//! failure leads to *discarded*, on this side's own decision: nobody was promised anything.
//!
//! *InDoubt* begins with the first byte of *ready*. From here only the source's decision counts: *start* or *abort* from the
//! source itself, or what the [`Resolver`] brings. Without either the machine is [`InDoubt`]: kept, paused, neither run nor
//! thrown away.
//!
//! *Started*: the departure is on record and the machine runs. *Pulling*: pages it misses are fetched; when the link breaks it
//! is [`Waiting`], and runs on as far as it gets.

mod event;
mod inflow;
mod porter;
mod session;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::inflow::Inflow;
use self::session::Session;
use crate::clock::Clock;
use crate::error::Failure;
use crate::layout::RamLayout;
use crate::ledger::{Decision, Resolver};
use crate::link::Acceptor;
use crate::machine::{Arriving, Fault};
use crate::page_set::PageSet;
use crate::section::Sections;
use crate::wire::{Key, MachineId, Message, Offers, Purpose};

/// What is to arrive.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Which attempt.
    pub key: Key,
    /// Which machine.
    pub machine: MachineId,
    /// Its RAM.
    pub layout: RamLayout,
    /// What may be used besides post-copy, which the machine says itself.
    pub offers: Offers,
    /// Longest wait for the source, and between two signs of it before it has said how long it may be silent.
    pub patience: Duration,
}

/// What the target uses of the world.
pub struct Arrivals<'a> {
    /// Takes streams. Only used until all streams are up, or to refuse more of them.
    pub acceptor: Box<dyn Acceptor>,
    /// Asks the source's ledger.
    pub resolver: &'a mut dyn Resolver,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// How it ended.
#[must_use]
pub enum Arrival<A: Arriving> {
    /// It runs here, with all of its memory.
    Running(A),
    /// It runs here and misses pages.
    Waiting(Waiting<A>),
    /// It did not come; [`Arriving::discard`] was called.
    Discarded(Failure),
    /// All of it is here, and it is not known whether the source departed.
    InDoubt(InDoubt<A>),
    /// The source has departed, and the start failed.
    NotStarted(NotStarted<A>),
}

impl<A: Arriving> fmt::Debug for Arrival<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(_) => f.write_str("Running"),
            Self::Waiting(waiting) => write!(f, "Waiting({})", waiting.why),
            Self::Discarded(why) => write!(f, "Discarded({why})"),
            Self::InDoubt(doubt) => write!(f, "InDoubt({})", doubt.why),
            Self::NotStarted(held) => write!(f, "NotStarted({})", held.why),
        }
    }
}

/// A machine that must not run yet: the source may still run it.
#[must_use]
pub struct InDoubt<A: Arriving> {
    held: Held<A>,
    /// What cut the source off.
    pub why: Failure,
}

/// A machine that runs while some of its memory is still at the source.
#[must_use]
pub struct Waiting<A: Arriving> {
    held: Held<A>,
    /// Why it misses pages.
    pub why: Failure,
}

/// A machine that runs nowhere, and may run here only.
#[must_use]
pub struct NotStarted<A: Arriving> {
    held: Held<A>,
    /// Why it did not start.
    pub why: Fault,
}

struct Held<A: Arriving> {
    machine: A,
    expected: Expected,
    inflow: Arc<Inflow<A::Memory>>,
}

/// Takes the machine that is expected. Returns when it runs with all of its memory, or when the streams are of no more use.
///
/// Blocks; the thread belongs to this migration.
pub fn arrive<A: Arriving>(machine: A, expected: &Expected, outside: Arrivals<'_>) -> Arrival<A> {
    let Arrivals {
        acceptor,
        resolver,
        clock,
    } = outside;
    let inflow = Arc::new(Inflow::new(machine.memory(), expected.layout.pages()));
    let mut held = Held {
        machine,
        expected: expected.clone(),
        inflow: Arc::clone(&inflow),
    };
    let mut session = Session::new(expected, Purpose::Move, inflow, acceptor, clock);
    if let Err(why) = held.take_all(&mut session) {
        session.send(&Message::Abort {
            key: expected.key,
            text: why.to_string(),
        });
        // The streams end before the machine does: their threads write to its memory.
        drop(session);
        held.machine.discard();
        return Arrival::Discarded(why);
    }
    session.send(&Message::Ready {
        key: expected.key,
        missing: held.inflow.left(),
    });
    match session.await_start() {
        Ok(()) => {}
        Err(why @ Failure::PeerGaveUp(_)) => {
            drop(session);
            held.machine.discard();
            return Arrival::Discarded(why);
        }
        Err(why) => {
            drop(session);
            return InDoubt { held, why }.resolve(resolver);
        }
    }
    held.inflow.started();
    if let Err(why) = held.machine.start() {
        return Arrival::NotStarted(NotStarted { held, why });
    }
    session.send(&Message::Started(expected.key));
    match session.pull() {
        Ok(()) => Arrival::Running(held.machine),
        Err(why) => Arrival::Waiting(Waiting { held, why }),
    }
}

impl<A: Arriving> Held<A> {
    /// Everything up to the moment in which the source can be promised that the machine could start.
    fn take_all(&mut self, session: &mut Session<'_, A::Memory>) -> Result<(), Failure> {
        session.join(self.machine.can_post_copy())?;
        let (sections, missing) = session.copy()?;
        self.load(sections, &missing)
    }

    fn load(&mut self, sections: Sections, missing: &PageSet) -> Result<(), Failure> {
        let fault = |what| move |error| Failure::Machine { what, error };
        self.inflow.seal(missing);
        if !missing.is_empty() {
            let wanted = self.inflow.wanted.clone();
            self.machine
                .withhold(missing, wanted)
                .map_err(fault("withhold missing pages"))?;
        }
        self.machine.load(sections.into_list()).map_err(fault("load its state"))
    }

    /// Runs it without a source that listens.
    fn start_alone(mut self, why: Failure) -> Arrival<A> {
        self.inflow.started();
        match self.machine.start() {
            Err(why) => Arrival::NotStarted(NotStarted { held: self, why }),
            Ok(()) if self.inflow.left() == 0 => Arrival::Running(self.machine),
            Ok(()) => Arrival::Waiting(Waiting { held: self, why }),
        }
    }
}

impl<A: Arriving> InDoubt<A> {
    /// Asks the source's ledger, and does what it says.
    pub fn resolve(self, resolver: &mut dyn Resolver) -> Arrival<A> {
        match resolver.ask(&self.held.expected.key) {
            Ok(Decision::Departed) => self.held.start_alone(self.why),
            Ok(Decision::Stayed) => {
                self.held.machine.discard();
                Arrival::Discarded(self.why)
            }
            Err(error) => {
                tracing::warn!(%error, "it is not known whether the source has departed; the machine is kept paused");
                Arrival::InDoubt(self)
            }
        }
    }
}

impl<A: Arriving> NotStarted<A> {
    /// Tries again.
    pub fn start(self) -> Arrival<A> {
        self.held
            .start_alone(Failure::Protocol("the source was not told of the start"))
    }
}

impl<A: Arriving> Waiting<A> {
    /// The running machine.
    pub fn machine(&self) -> &A {
        &self.held.machine
    }

    /// How many pages it misses.
    pub fn missing(&self) -> u64 {
        self.held.inflow.left()
    }

    /// Waits for the source to open streams again, and takes what is missing.
    pub fn fetch(self, acceptor: Box<dyn Acceptor>, clock: Arc<dyn Clock>) -> Arrival<A> {
        let inflow = Arc::clone(&self.held.inflow);
        let mut session = Session::new(&self.held.expected, Purpose::Fetch, inflow, acceptor, clock);
        let outcome = session.join(true).and_then(|()| {
            session.list_missing();
            session.pull()
        });
        drop(session);
        match outcome {
            Ok(()) => Arrival::Running(self.held.machine),
            Err(why) => Arrival::Waiting(Self { why, ..self }),
        }
    }
}
