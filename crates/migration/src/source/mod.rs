//! The side that has the machine.
//!
//! ```text
//!   Opening ──▶ Copying ──▶ Sealing ──▶ Waiting ──▶ Deciding ──▶ Departed ──▶ Serving ──▶ gone
//!      │           │           │           │            │  │         │           │  ▲
//!      ▼           ▼           ▼           ▼            ▼  ▼         ▼           ▼  │ serve()
//!      └───────────┴──── stayed, runs ─────┴────────────┘ Undecided  gone      Owing
//! ```
//!
//! *Opening*: streams are opened and both sides agree; nothing was asked of the machine. *Copying*: rounds over memory, the
//! guest runs. *Sealing*: the guest is paused; the last pages and all sections go out. *Waiting*: for the target's *ready*.
//! Up to here every failure and every cancellation leads to *stayed*: [`Departing::stay`] was called and the machine runs.
//!
//! *Deciding*: no cancellation is accepted any more; the ledger is asked to write *departed*. If somebody had it write *stayed*
//! before, the machine stays. If nobody can say what is written the machine is [`Undecided`]: paused until somebody can.
//!
//! *Departed*: [`Departing::departed`] has taken the machine, nothing here can run it, and the target is told to start. Without
//! post-copy there is nothing left to do here: whether *started* is heard changes nothing, as the target resolves its doubt
//! alone. *Serving*: pages that the started machine misses. When the link breaks the memory is [`Owing`] until it is served.

mod handover;
mod packer;
mod rounds;
mod wires;

use std::sync::Arc;

pub(crate) use handover::MISSING_PER_FRAME;
pub use wires::Plan;

use self::rounds::Rounds;
use self::wires::{Opening, Wires};
use crate::clock::Clock;
use crate::error::Failure;
use crate::ledger::{Decision, Ledger};
use crate::link::Dialer;
use crate::machine::{Departing, Fault, SourceMemory};
use crate::page_set::PageSet;
use crate::phase::Phase;
use crate::progress::Handle;
use crate::wire::{Message, Purpose};

/// What the source uses of the world.
pub struct Departures<'a> {
    /// Opens streams to the target.
    pub dialer: &'a mut dyn Dialer,
    /// Where it is recorded that the machine departed.
    pub ledger: &'a mut dyn Ledger,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Watches and steers; in [`Phase::Scheduling`].
    pub handle: Handle,
}

/// How it ended.
#[derive(Debug)]
#[must_use]
pub enum Departure<D: Departing> {
    /// The machine runs at the target, or will as soon as that has asked the ledger. Nothing of it is needed here.
    Gone {
        /// The target said that it runs.
        confirmed: bool,
    },
    /// It runs at the target, which misses pages of it. They are only here.
    Owing(Owing<D::Memory>),
    /// It stayed.
    Stayed {
        /// The machine.
        machine: D,
        /// Why.
        why: Failure,
        /// Whether it runs; the error of [`Departing::stay`] if not, which may be called again.
        runs: Result<(), Fault>,
    },
    /// Paused, and it is not known whether it may run here.
    Undecided(Undecided<D>),
}

/// A machine that may or may not have departed: paused, until the ledger can say it.
#[derive(Debug)]
#[must_use]
pub struct Undecided<D: Departing> {
    machine: D,
    missing: PageSet,
    plan: Plan,
    handle: Handle,
    /// Why the ledger could not say it.
    pub why: Failure,
}

/// The memory of a departed machine, which the target still needs.
#[derive(Debug)]
#[must_use]
pub struct Owing<M> {
    memory: Arc<M>,
    plan: Plan,
    handle: Handle,
    /// Why it was not served.
    pub why: Failure,
}

fn stayed<D: Departing>(mut machine: D, why: Failure, handle: &Handle) -> Departure<D> {
    let runs = machine.stay();
    handle.enter(if matches!(why, Failure::Cancelled) {
        Phase::Cancelled
    } else {
        Phase::Failed
    });
    tracing::info!(why = %why, runs = runs.is_ok(), "machine stays");
    Departure::Stayed { machine, why, runs }
}

/// Moves `machine` to whoever the dialer reaches. Returns when it has departed or stays.
///
/// Blocks; the thread belongs to this migration.
pub fn depart<D: Departing>(mut machine: D, plan: &Plan, outside: Departures<'_>) -> Departure<D> {
    let Departures {
        dialer,
        ledger,
        clock,
        handle,
    } = outside;
    handle.enter(Phase::PreparingTarget);
    let memory = machine.memory();
    let opening = Opening {
        plan,
        dialer,
        clock,
        handle: handle.clone(),
        memory: memory.clone(),
        purpose: Purpose::Move,
    };
    let mut wires = match Wires::open(opening) {
        Ok(wires) => wires,
        Err(why) => return stayed(machine, why, &handle),
    };
    let missing = match send_all(&mut machine, plan, &mut wires) {
        Ok(missing) if handle.close() => missing,
        outcome => {
            let why = outcome.err().unwrap_or(Failure::Cancelled);
            wires.outbox.send(&Message::Abort {
                key: plan.key,
                text: why.to_string(),
            });
            let departure = stayed(machine, why, &handle);
            drop(wires);
            return departure;
        }
    };
    match ledger.decide(&plan.key, Decision::Departed) {
        Ok(Decision::Departed) => {}
        Ok(Decision::Stayed) => return stayed(machine, Failure::Fenced, &handle),
        Err(error) => {
            let why = Failure::Ledger(error);
            return Departure::Undecided(Undecided {
                machine,
                missing,
                plan: plan.clone(),
                handle,
                why,
            });
        }
    }
    machine.departed();
    handle.enter(Phase::Succeeded);
    let outcome = handover::start(&mut wires, plan.options.handover_timeout);
    if outcome.is_ok() {
        let downtime = wires.clock.now().saturating_sub(wires.paused_at);
        handle.update(|progress| progress.downtime = Some(downtime));
    }
    if missing.is_empty() {
        return Departure::Gone {
            confirmed: outcome.is_ok(),
        };
    }
    match outcome.and_then(|()| handover::push(&mut wires, &*memory, &missing)) {
        Ok(()) => Departure::Gone { confirmed: true },
        Err(why) => Departure::Owing(Owing {
            memory,
            plan: plan.clone(),
            handle,
            why,
        }),
    }
}

/// Everything up to the target's *ready*.
fn send_all<D: Departing>(machine: &mut D, plan: &Plan, wires: &mut Wires) -> Result<PageSet, Failure> {
    wires.await_streams(plan.options.progress_timeout)?;
    wires.handle.enter(Phase::TargetReady);
    wires.handle.enter(Phase::Running);
    let mut rounds = Rounds::new(wires, plan);
    let (set, step) = rounds.run(machine)?;
    let missing = handover::seal(machine, &mut rounds, set, step)?;
    handover::await_ready(wires, missing.len(), plan.options.handover_timeout)?;
    Ok(missing)
}

impl<D: Departing> Undecided<D> {
    /// Asks the ledger again. The streams are gone: a machine that has departed is started by the target, which asks too.
    pub fn decide(self, ledger: &mut dyn Ledger) -> Departure<D> {
        match ledger.decide(&self.plan.key, Decision::Departed) {
            Ok(Decision::Stayed) => stayed(self.machine, Failure::Fenced, &self.handle),
            Err(error) => Departure::Undecided(Self {
                why: Failure::Ledger(error),
                ..self
            }),
            Ok(Decision::Departed) => {
                let memory = self.machine.memory();
                self.machine.departed();
                self.handle.enter(Phase::Succeeded);
                if self.missing.is_empty() {
                    return Departure::Gone { confirmed: false };
                }
                Departure::Owing(Owing {
                    memory,
                    plan: self.plan,
                    handle: self.handle,
                    why: self.why,
                })
            }
        }
    }
}

impl<M: SourceMemory + 'static> Owing<M> {
    /// Opens streams again and sends what the target says it misses. `Ok` when it has everything.
    pub fn serve(self, dialer: &mut dyn Dialer, clock: Arc<dyn Clock>) -> Result<(), Box<Self>> {
        match self.try_serve(dialer, clock) {
            Ok(()) => Ok(()),
            Err(why) => Err(Box::new(Self { why, ..self })),
        }
    }

    fn try_serve(&self, dialer: &mut dyn Dialer, clock: Arc<dyn Clock>) -> Result<(), Failure> {
        let opening = Opening {
            plan: &self.plan,
            dialer,
            clock,
            handle: self.handle.clone(),
            memory: self.memory.clone(),
            purpose: Purpose::Fetch,
        };
        let patience = self.plan.options.progress_timeout;
        // The target's list may come before the page streams are known to be up here.
        let mut wires = Wires::open(opening)?;
        let mut missing = PageSet::empty(self.plan.layout.pages());
        let until = wires.clock.now().saturating_add(patience);
        loop {
            match wires.message(until)? {
                Some(Message::Missing(pairs)) => pairs.iter().for_each(|(chunk, mask)| missing.add(*chunk, *mask)),
                Some(Message::Ready { key, missing: count }) if key == wires.key && count == missing.len() => break,
                Some(_) => return Err(Failure::Protocol("something else than missing pages")),
                None => return Err(Failure::NoProgress(patience)),
            }
        }
        handover::push(&mut wires, &*self.memory, &missing)
    }

    /// Gives the memory up. Only after the target was heard, by another road, to have all of it, or when it is dead.
    pub fn release(self) {
        drop(self);
    }
}
