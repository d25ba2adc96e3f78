//! The migration thread of a machine that comes.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use control::{MigrationKey, MigrationNews};
use migration::{
    Acceptor, Arrival, Arrivals, Arriving, Decision, Expected, Fault, HostClock, Key, LayoutError, LedgerError, Offers,
    PageSet, Resolver, Section, Wanted, arrive,
};
use sandbox::{NewThread, ThreadKind};
use spec::VmId;

use super::depart::{PAUSED_SECTION, STATE_SECTION, STATE_VERSION};
use super::memory::Pages;
use super::order::{Asking, MoveOrder, Outcome, Word};
use super::plan;
use crate::story::whole;

/// Stack of the thread, bytes.
const STACK_BYTES: usize = 512 << 10;
/// Pause between two attempts to start a machine that has to run here.
const START_AGAIN: Duration = Duration::from_secs(1);

/// How a machine is to come.
pub struct Incoming {
    /// Which attempt.
    pub key: MigrationKey,
    /// Longest wait for the source.
    pub patience: Duration,
    /// Makes the way in; again for each attempt to fetch what is missing.
    pub acceptor: Box<dyn Fn() -> Box<dyn Acceptor> + Send>,
}

/// What an arrival begins with.
pub(crate) struct Coming {
    pub(crate) machine: VmId,
    pub(crate) incoming: Incoming,
    pub(crate) asking: Asking,
    pub(crate) words: Receiver<Word>,
}

/// Why an arrival can not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComeError {
    /// No thread.
    #[error("no thread for it; raise the limit on processes (RLIMIT_NPROC, pids.max)")]
    Thread(#[source] std::io::Error),
    /// A defect.
    #[error("its memory can not be laid out for the way")]
    Layout(#[source] LayoutError),
}

/// Begins.
pub(crate) fn spawn(coming: Coming) -> Result<(), ComeError> {
    let expected = Expected {
        key: plan::key(&coming.incoming.key),
        machine: plan::machine(coming.machine),
        layout: plan::layout(&coming.asking.memory).map_err(ComeError::Layout)?,
        offers: Offers::none().with(Offers::ZSTD).with(Offers::DELTA),
        patience: coming.incoming.patience,
    };
    let span = tracing::Span::current();
    NewThread::new(ThreadKind::Migration, "migration")
        .stack_bytes(STACK_BYTES)
        .spawn(move || span.in_scope(|| run(coming, &expected)))
        .map_err(ComeError::Thread)?;
    Ok(())
}

fn run(coming: Coming, expected: &Expected) {
    let Coming {
        incoming: Incoming { key, acceptor, .. },
        asking,
        words,
        ..
    } = coming;
    let asking = Arc::new(asking);
    let mut record = Record {
        key,
        asking: Arc::clone(&asking),
        words,
    };
    let comer = Comer {
        memory: Arc::new(Pages::new(asking.memory.clone())),
        asking: Arc::clone(&asking),
    };
    let clock = Arc::new(HostClock::new());
    let outside = Arrivals {
        acceptor: acceptor(),
        resolver: &mut record,
        clock: clock.clone(),
    };
    let mut arrival = arrive(comer, expected, outside);
    let outcome = loop {
        arrival = match arrival {
            Arrival::Running(_) => break Outcome::Arrived,
            Arrival::Discarded(why) => break Outcome::Discarded { reason: whole(&why) },
            // The record has no answer only when the machine's process ends.
            Arrival::InDoubt(_) => return,
            Arrival::Waiting(waiting) => {
                let why = whole(&waiting.why);
                tracing::warn!(
                    missing = waiting.missing(),
                    why,
                    "the source of missing memory is gone; waiting for it"
                );
                waiting.fetch(acceptor(), clock.clone())
            }
            Arrival::NotStarted(held) => {
                let why = whole(&*held.why);
                tracing::error!(
                    why,
                    "the machine lives here now, and can not be started; it is tried again"
                );
                thread::sleep(START_AGAIN);
                held.start()
            }
        };
    };
    asking.tell(MoveOrder::Over(outcome));
}

/// The machine, as `migration` sees it.
struct Comer {
    memory: Arc<Pages>,
    asking: Arc<Asking>,
}

/// Sections that are not those of this program.
#[derive(Debug, thiserror::Error)]
enum SectionsError {
    #[error("the source sent no state")]
    None,
    #[error("the source sent a section {name} of version {version}, which this karat-vmm does not know")]
    Unknown { name: String, version: u32 },
}

impl Arriving for Comer {
    type Memory = Pages;

    fn memory(&self) -> Arc<Pages> {
        Arc::clone(&self.memory)
    }

    fn can_post_copy(&self) -> bool {
        self.memory.can_miss()
    }

    fn withhold(&mut self, missing: &PageSet, wanted: Wanted) -> Result<(), Fault> {
        Ok(self.memory.withhold(missing, wanted)?)
    }

    fn load(&mut self, sections: Vec<Section>) -> Result<(), Fault> {
        let (mut state, mut paused) = (None, false);
        for Section { name, version, bytes } in sections {
            match (name.as_str(), version) {
                (STATE_SECTION, STATE_VERSION) => state = Some(bytes),
                (PAUSED_SECTION, STATE_VERSION) => paused = true,
                _ => return Err(SectionsError::Unknown { name, version }.into()),
            }
        }
        let state = state.ok_or(SectionsError::None)?;
        self.asking.ask(|answer| MoveOrder::Load { state, paused, answer })
    }

    fn start(&mut self) -> Result<(), Fault> {
        self.memory.start()?;
        self.asking.ask(MoveOrder::Start)
    }

    fn discard(self) {
        // An error means that the machine has ended, which is as good.
        let _ = self.asking.ask(MoveOrder::Discard);
    }
}

/// The daemon, which asks the source's.
struct Record {
    key: MigrationKey,
    asking: Arc<Asking>,
    words: Receiver<Word>,
}

impl Resolver for Record {
    /// Fails only when there is nobody any more who could be asked.
    fn ask(&mut self, _key: &Key) -> Result<Decision, LedgerError> {
        self.asking
            .tell(MoveOrder::Tell(MigrationNews::InDoubt { key: self.key }));
        loop {
            match self.words.recv()? {
                Word::Decided { departed: true } => return Ok(Decision::Departed),
                Word::Decided { departed: false } => return Ok(Decision::Stayed),
                Word::Links(_) => {}
            }
        }
    }
}
