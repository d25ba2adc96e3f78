//! Phases of one machine, and what leads from one to the next. Pure: nothing here waits or touches the host.
//!
//! ```text
//!              Start               launched               Pause
//!   Stopped ──────────▶ Starting ───────────▶ Running ◀──────────▶ Paused
//!    ▲ ▲  ▲               │   │                │ ▲ │     Resume      │ │
//!    │ │  │   Stop(force),│   │launch     Stop │ │ │timeout, cancel  │ │ Stop(force)
//!    │ │  │   cancel      ▼   │failed          ▼ │ │                 │ │
//!    │ │  └─────────── Stopping ◀───────────────┴─┘◀────────────────┼─┘
//!    │ │    exited            │                                      │
//!    │ └── exited, cleanly ───┼─────────── Running, Paused           │
//!    │                        ▼                                      │
//!    └─ (Start) ─────────── Failed ◀── exited in any other way ──────┘
//! ```
//!
//! ```text
//!   (from another host) ──▶ Arriving ──▶ Running, Paused ── exited, and departed ──▶ Departed ──▶ (its record goes)
//!                              └── it did not come ──▶ (its record goes)
//! ```
//!
//! *Arriving*: another host decides whether it becomes a machine here; a process may or may not be there. *Departed*: another host
//! has it, as the ledger of moves says; nothing leads out of it but the end of the record.
//!
//! *Stopped*, *Failed*: no process; the disk is kept. *Starting*: a launch is under way and ends in exactly one of
//! "launched" and "launch failed". *Running*, *Paused*: there is a process and it said so itself. *Stopping*: there is a
//! process, or a launch that was told to give up; `stops` holds the operations that wait for its end, and `forced` whether
//! the guest has no say any more.

use api_types::{ErrorCode, OperationPhase, VmPhase, VmStatus};
use control::{VmRequest, VmState};
use spec::OperationId;

use crate::failure::Failure;

/// What somebody asks of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Launch it; the operation ends when it runs.
    Start(OperationId),
    /// Shut it down, or end it at once; the operation ends when it is gone.
    Stop {
        /// Ends when the process is gone.
        operation: OperationId,
        /// Do not ask the guest.
        force: bool,
    },
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Power-cycle the guest.
    Reset,
    /// Change a disk under it.
    ChangeDisk,
    /// Change what it is made of.
    Edit,
    /// Remove the machine.
    Delete,
    /// Move it to another host.
    Depart,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// One word for programs.
    pub(crate) reason: String,
    /// A sentence for people.
    pub(crate) message: String,
    /// Whether this is how machines are meant to end.
    pub(crate) clean: bool,
}

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    /// It runs.
    Launched {
        /// Its process.
        pid: u32,
        /// Microseconds from the request to the first guest instruction, if that was seen.
        start_to_guest_us: Option<u64>,
    },
    /// It does not, and no process is left.
    LaunchFailed(Failure),
    /// Its process says so.
    State(VmState),
    /// Its process counts so many resets.
    Resets(u32),
    /// Its process is gone.
    Exited(End),
    /// The guest did not shut down in time.
    StopTimedOut,
    /// Somebody cancelled an operation.
    Cancelled(OperationId),
}

/// What has to be done now, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Begin to launch.
    Launch,
    /// Tell the launch to give up.
    AbortLaunch,
    /// Send a request to the process.
    Send(VmRequest),
    /// Ask the process to end, and kill it if it does not.
    End,
    /// Give the guest time to shut down, and tell when it is over.
    AwaitShutdown,
    /// Neither a shutdown nor an end is awaited any longer.
    Forget,
    /// An operation is over.
    Finish(OperationId, OperationPhase, Option<Failure>),
}

/// Where a machine is, and who waits for it to be elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    name: String,
    /// What the record says.
    pub(crate) status: VmStatus,
    start: Option<OperationId>,
    stops: Vec<OperationId>,
    forced: bool,
    /// It was given away, as the ledger says: whatever happens, it never runs here again.
    pub(crate) departed: bool,
}

impl Lifecycle {
    /// As the record says; nobody waits.
    pub(crate) fn new(name: &str, status: VmStatus) -> Self {
        Self {
            name: name.to_owned(),
            status,
            start: None,
            stops: Vec::new(),
            forced: false,
            departed: false,
        }
    }

    /// Where it is.
    pub(crate) const fn phase(&self) -> VmPhase {
        self.status.phase
    }

    /// Whether `ask` may be carried out now, and what follows if so. This is the only place that says so.
    pub(crate) fn ask(&mut self, ask: Ask) -> Result<Vec<Effect>, Failure> {
        use VmPhase::{Departed, Failed, Paused, Running, Starting, Stopped, Stopping};
        match (ask, self.phase()) {
            (Ask::Delete, Departed) if self.status.pid.is_none() => Ok(vec![]),
            _ if self.departed => Err(self.refusal(ask)),
            (Ask::Start(operation), Stopped | Failed) => {
                self.enter(Starting, None, None);
                self.start = Some(operation);
                Ok(vec![Effect::Launch])
            }
            (
                Ask::Stop {
                    operation,
                    force: false,
                },
                Running,
            ) => {
                self.enter(Stopping, Some("Requested"), Some("the power button was pressed"));
                self.stops.push(operation);
                Ok(vec![Effect::Send(VmRequest::PowerButton), Effect::AwaitShutdown])
            }
            (Ask::Stop { operation, force: true }, Starting) => {
                self.stops.push(operation);
                Ok(self.give_up_launch())
            }
            (Ask::Stop { operation, force: true }, Running | Paused | Stopping) => {
                self.stops.push(operation);
                self.forced = true;
                self.enter(Stopping, Some("Requested"), Some("the machine is being ended"));
                // A launch that was told to give up ends by itself.
                Ok(if self.start.is_some() {
                    vec![]
                } else {
                    vec![Effect::End]
                })
            }
            (Ask::Pause, Running) => Ok(vec![Effect::Send(VmRequest::Pause)]),
            (Ask::Resume, Paused) => Ok(vec![Effect::Send(VmRequest::Resume)]),
            (Ask::Reset, Running) => Ok(vec![Effect::Send(VmRequest::Reset)]),
            (Ask::ChangeDisk | Ask::Depart, Running | Paused) | (Ask::Edit | Ask::Delete, Stopped | Failed) => {
                Ok(vec![])
            }
            _ => Err(self.refusal(ask)),
        }
    }

    /// Takes note of what happened, and tells what follows.
    pub(crate) fn happened(&mut self, happened: Happened) -> Vec<Effect> {
        match happened {
            Happened::Launched { pid, start_to_guest_us } => self.launched(pid, start_to_guest_us),
            Happened::LaunchFailed(failure) => self.launch_failed(failure),
            Happened::State(state) => self.told(state),
            Happened::Resets(count) => {
                self.status.resets = count;
                vec![]
            }
            Happened::Exited(end) => self.exited(&end),
            Happened::StopTimedOut => self.guest_goes_on(OperationPhase::Failed, || {
                Failure::new(
                    ErrorCode::Timeout,
                    "the guest did not shut down in time and goes on; give it longer, or end it with force",
                )
            }),
            Happened::Cancelled(operation) if self.start == Some(operation) => match self.phase() {
                VmPhase::Starting => self.give_up_launch(),
                _ => vec![],
            },
            Happened::Cancelled(operation) if self.stops.contains(&operation) => self
                .guest_goes_on(OperationPhase::Cancelled, || {
                    Failure::new(ErrorCode::Cancelled, "cancelled; the guest may still shut down")
                }),
            Happened::Cancelled(_) => vec![],
        }
    }

    fn launched(&mut self, pid: u32, start_to_guest_us: Option<u64>) -> Vec<Effect> {
        self.status.pid = Some(pid);
        if self.phase() == VmPhase::Arriving {
            return vec![];
        }
        self.status.start_to_guest_us = start_to_guest_us;
        self.status.resets = 0;
        if self.phase() == VmPhase::Stopping {
            // The request to give up came too late to stop the launch itself.
            self.forced = true;
            let cancelled = Failure::new(ErrorCode::Cancelled, "cancelled while it started");
            let mut effects = vec![Effect::End];
            effects.extend(self.finish_start(OperationPhase::Cancelled, Some(cancelled)));
            return effects;
        }
        self.enter(VmPhase::Running, None, None);
        self.finish_start(OperationPhase::Succeeded, None)
    }

    fn launch_failed(&mut self, failure: Failure) -> Vec<Effect> {
        let given_up = self.phase() == VmPhase::Stopping;
        self.forced = false;
        self.status.pid = None;
        if self.phase() == VmPhase::Arriving {
            return vec![];
        }
        if given_up {
            self.enter(
                VmPhase::Stopped,
                Some("Requested"),
                Some("given up while it started, on request"),
            );
        } else {
            self.enter(VmPhase::Failed, Some("StartFailed"), Some(&failure.detail));
        }
        let phase = if given_up {
            OperationPhase::Cancelled
        } else {
            OperationPhase::Failed
        };
        let mut effects = self.finish_start(phase, Some(failure));
        effects.extend(self.finish_stops(OperationPhase::Succeeded, None));
        effects
    }

    fn told(&mut self, state: VmState) -> Vec<Effect> {
        match (self.phase(), state) {
            (VmPhase::Paused | VmPhase::Arriving, VmState::Running) => self.enter(VmPhase::Running, None, None),
            (VmPhase::Running | VmPhase::Arriving, VmState::Paused) => self.enter(VmPhase::Paused, None, None),
            (VmPhase::Running | VmPhase::Paused, VmState::Departed) => {
                let text = "it lives on another host, which may still need memory from here";
                self.enter(VmPhase::Departed, Some("Departed"), Some(text));
            }
            _ => {}
        }
        vec![]
    }

    fn exited(&mut self, end: &End) -> Vec<Effect> {
        self.status.pid = None;
        let mut effects = vec![Effect::Forget];
        if self.departed {
            let text = "it lives on another host; what is left of it here goes when that host has confirmed it";
            self.enter(VmPhase::Departed, Some("Departed"), Some(text));
            let failure = Failure::new(ErrorCode::WrongState, "the machine went to another host meanwhile");
            effects.extend(self.finish_stops(OperationPhase::Failed, Some(&failure)));
            self.forced = false;
            return effects;
        }
        if self.phase() == VmPhase::Arriving {
            // Only the source knows whose it is.
            self.status.message = Some(end.message.clone());
            return effects;
        }
        if self.forced || end.clean {
            let reason = if self.forced { "Requested" } else { &end.reason };
            self.enter(VmPhase::Stopped, Some(reason), Some(&end.message));
            effects.extend(self.finish_stops(OperationPhase::Succeeded, None));
        } else {
            self.enter(VmPhase::Failed, Some(&end.reason), Some(&end.message));
            let failure = Failure::new(
                ErrorCode::MachineFailed,
                format!("the machine ended, but not as asked: {}", end.message),
            );
            effects.extend(self.finish_stops(OperationPhase::Failed, Some(&failure)));
        }
        self.forced = false;
        effects
    }

    fn guest_goes_on(&mut self, phase: OperationPhase, why: impl FnOnce() -> Failure) -> Vec<Effect> {
        if self.phase() != VmPhase::Stopping || self.forced || self.start.is_some() {
            return vec![];
        }
        self.enter(VmPhase::Running, None, None);
        let mut effects = vec![Effect::Forget];
        effects.extend(self.finish_stops(phase, Some(&why())));
        effects
    }

    fn give_up_launch(&mut self) -> Vec<Effect> {
        self.enter(
            VmPhase::Stopping,
            Some("Requested"),
            Some("the start is being given up"),
        );
        vec![Effect::AbortLaunch]
    }

    fn finish_start(&mut self, phase: OperationPhase, failure: Option<Failure>) -> Vec<Effect> {
        let operation = self.start.take();
        operation
            .map(|id| Effect::Finish(id, phase, failure))
            .into_iter()
            .collect()
    }

    fn finish_stops(&mut self, phase: OperationPhase, failure: Option<&Failure>) -> Vec<Effect> {
        let stops = std::mem::take(&mut self.stops);
        stops
            .into_iter()
            .map(|id| Effect::Finish(id, phase, failure.cloned()))
            .collect()
    }

    /// Moves to `phase`; `reason` and `message` replace what was there.
    pub(crate) fn enter(&mut self, phase: VmPhase, reason: Option<&str>, message: Option<&str>) {
        self.status.phase = phase;
        self.status.reason = reason.map(str::to_owned);
        self.status.message = message.map(str::to_owned);
    }

    fn refusal(&self, ask: Ask) -> Failure {
        let name = &self.name;
        let phase = self.phase();
        let advice = match (ask, phase) {
            (_, VmPhase::Departed) => {
                "it lives on another host, and never runs here again; what is left of it can be deleted"
            }
            _ if self.departed => "it has left for another host, and never runs here again",
            (_, VmPhase::Arriving) => "it is on its way here from another host; cancel the migration there",
            (Ask::Start(_), VmPhase::Starting) => "it is being started already; follow the operation of that start",
            (Ask::Start(_), VmPhase::Stopping) => "wait until it has stopped",
            (Ask::Start(_), _) => "it has been started already",
            (Ask::Stop { .. }, VmPhase::Stopped | VmPhase::Failed) => "there is nothing to stop",
            (Ask::Stop { .. }, VmPhase::Paused) => {
                "a paused guest can not shut down: resume it first, or stop it with force"
            }
            (Ask::Stop { .. }, VmPhase::Starting) => "wait until it runs, or stop it with force",
            (Ask::Stop { .. }, _) => "it has been asked to shut down already; stop it with force to end it at once",
            (Ask::ChangeDisk, _) => "only a machine that runs or is paused can do that",
            (Ask::Edit, _) => "stop it first; what it is made of is changed only while it has no process",
            (Ask::Delete, _) => "stop it first, or delete it with force",
            (Ask::Depart, _) => "only a machine that runs or is paused can be moved",
            (Ask::Pause | Ask::Reset, _) => "only a running machine can do that",
            (Ask::Resume, _) => "only a paused machine can go on",
        };
        Failure::new(ErrorCode::WrongState, format!("machine {name} is {phase:?}: {advice}"))
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
