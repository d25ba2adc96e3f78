//! The migration thread of a machine that leaves.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use control::{DepartVm, MigrationKey, MigrationNews};
use migration::{
    Decision, Departing, Departure, Departures, Dialer, Failure, Fault, Handle, HostClock, Key, LayoutError, Ledger,
    LedgerError, PageSet, Plan, Section, StateCost, depart,
};
use sandbox::{NewThread, ThreadKind};
use spec::VmId;

use super::memory::Pages;
use super::order::{Asking, MoveOrder, Outcome, Word};
use super::plan;
use super::progress::Teller;
use crate::story::whole;

/// Name of the one section that a machine's state travels in: a container of sections itself, as `savestate` writes it.
pub(super) const STATE_SECTION: &str = "machine";
/// Version of what is in it.
pub(super) const STATE_VERSION: u32 = 1;
/// Stack of the thread, bytes.
const STACK_BYTES: usize = 512 << 10;

/// What a departure begins with.
pub(crate) struct Leaving {
    pub(crate) machine: VmId,
    pub(crate) depart: Box<DepartVm>,
    pub(crate) dialer: Box<dyn Dialer + Send>,
    pub(crate) asking: Asking,
    pub(crate) words: Receiver<Word>,
    pub(crate) handle: Handle,
    /// To tell of progress by.
    pub(crate) tell: Box<dyn Fn(MoveOrder) + Send + Sync>,
    /// The machine is paused, and is to be at the target.
    pub(crate) paused: bool,
}

/// Why a departure can not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    /// No thread.
    #[error("no thread for it; raise the limit on processes (RLIMIT_NPROC, pids.max)")]
    Thread(#[source] std::io::Error),
    /// A defect.
    #[error("its memory can not be laid out for the way")]
    Layout(#[source] LayoutError),
}

/// Begins.
pub(crate) fn spawn(leaving: Leaving) -> Result<(), LeaveError> {
    let plan = Plan {
        key: plan::key(&leaving.depart.key),
        machine: plan::machine(leaving.machine),
        layout: plan::layout(&leaving.asking.memory).map_err(LeaveError::Layout)?,
        options: plan::options(&leaving.depart.options),
    };
    let span = tracing::Span::current();
    NewThread::new(ThreadKind::Migration, "migration")
        .stack_bytes(STACK_BYTES)
        .spawn(move || span.in_scope(|| run(leaving, &plan)))
        .map_err(LeaveError::Thread)?;
    Ok(())
}

fn run(leaving: Leaving, plan: &Plan) {
    let Leaving {
        depart: wish,
        mut dialer,
        asking,
        words,
        handle,
        tell,
        paused,
        ..
    } = leaving;
    let asking = Arc::new(asking);
    let teller = Teller::start(handle.clone(), tell);
    let mut record = Record {
        key: wish.key,
        asking: Arc::clone(&asking),
        words,
    };
    let leaver = Leaver {
        memory: Arc::new(Pages::new(asking.memory.clone())),
        asking: Arc::clone(&asking),
        paused,
    };
    let outside = Departures {
        dialer: &mut *dialer,
        ledger: &mut record,
        clock: Arc::new(HostClock::new()),
        handle,
    };
    let mut departure = depart(leaver, plan, outside);
    let outcome = loop {
        departure = match departure {
            Departure::Gone { .. } => break Outcome::Gone,
            Departure::Stayed { why, runs, .. } => {
                if let Err(error) = runs {
                    let error = whole(&*error);
                    tracing::error!(error, "machine stays, and could not be set going again");
                }
                break Outcome::Stayed {
                    reason: whole(&why),
                    cancelled: matches!(why, Failure::Cancelled),
                };
            }
            // The record has no answer only when the machine has ended: nobody is there who could be told.
            Departure::Undecided(_) => return,
            Departure::Owing(owing) => match record.await_links(plan, &owing.why) {
                // As above.
                None => return,
                Some(mut dialer) => match owing.serve(&mut *dialer, Arc::new(HostClock::new())) {
                    Ok(()) => break Outcome::Gone,
                    Err(owing) => Departure::Owing(*owing),
                },
            },
        };
    };
    drop(teller);
    asking.tell(MoveOrder::Over(outcome));
}

/// The machine, as `migration` sees it.
struct Leaver {
    memory: Arc<Pages>,
    asking: Arc<Asking>,
    paused: bool,
}

impl Departing for Leaver {
    type Memory = Pages;

    fn memory(&self) -> Arc<Pages> {
        Arc::clone(&self.memory)
    }

    fn begin(&mut self) -> Result<PageSet, Fault> {
        self.asking.ask(MoveOrder::Begin)?;
        Ok(self.memory.occupied())
    }

    fn take_dirty(&mut self) -> Result<PageSet, Fault> {
        self.asking.ask(MoveOrder::TakeDirty)
    }

    fn state_cost(&mut self) -> Result<StateCost, Fault> {
        self.asking.ask(MoveOrder::Cost)
    }

    fn throttle(&mut self, percent: u8) {
        self.asking.tell(MoveOrder::Throttle(percent));
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.asking.ask(MoveOrder::Pause)
    }

    fn save(&mut self) -> Result<Vec<Section>, Fault> {
        let section = |name: &str, bytes| Section {
            name: name.to_owned(),
            version: STATE_VERSION,
            bytes,
        };
        let mut sections = vec![section(STATE_SECTION, self.asking.ask(MoveOrder::Save)?)];
        if self.paused {
            sections.push(section(PAUSED_SECTION, Vec::new()));
        }
        Ok(sections)
    }

    fn stay(&mut self) -> Result<(), Fault> {
        self.asking.ask(MoveOrder::Stay)
    }

    fn departed(self) {
        // An error means that the machine has ended, which is as good.
        let _ = self.asking.ask(MoveOrder::Departed);
    }
}

/// Name of the section that says that the machine was paused. It is empty.
pub(super) const PAUSED_SECTION: &str = "paused";

/// The daemon, which keeps the record.
struct Record {
    key: MigrationKey,
    asking: Arc<Asking>,
    words: Receiver<Word>,
}

impl Record {
    /// Asks for new streams until some come; none when the machine's process ends.
    fn await_links(&self, plan: &Plan, why: &Failure) -> Option<Box<dyn Dialer + Send>> {
        let reason = whole(why);
        tracing::warn!(
            reason,
            "the target misses memory of the machine, and can not be reached"
        );
        let count = 1 + u32::from(plan.options.streams);
        self.asking
            .tell(MoveOrder::Tell(MigrationNews::LinksWanted { count, reason }));
        loop {
            match self.words.recv().ok()? {
                Word::Links(dialer) => return Some(dialer),
                // Said again, perhaps to a daemon that was restarted.
                Word::Decided { .. } => {}
            }
        }
    }
}

impl Ledger for Record {
    /// Fails only when there is nobody any more who could be asked.
    fn decide(&mut self, _key: &Key, _wanted: Decision) -> Result<Decision, LedgerError> {
        self.asking
            .tell(MoveOrder::Tell(MigrationNews::Decide { key: self.key }));
        loop {
            match self.words.recv()? {
                Word::Decided { departed: true } => return Ok(Decision::Departed),
                Word::Decided { departed: false } => return Ok(Decision::Stayed),
                // Sent too early.
                Word::Links(_) => {}
            }
        }
    }
}
