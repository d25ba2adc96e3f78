//! The state driver: one thread that owns the machine's life.
//!
//! ```text
//!            Create             Start              Pause
//!   Empty ──────────▶ Created ──────────▶ Running ──────────▶ Paused
//!     │ fails                              │  ▲ │               │
//!     ▼                    reset (guest or │  │ │◀── Resume ────┘
//!   Ended ◀──┐             daemon): tear   └──┘ │
//!            │             down, rebuild        │ power-off, debug exit, triple fault, vCPU failure, failed rebuild
//!            └──── Quit, Terminate (from any) ──┴──────────────▶ Ended
//! ```
//!
//! A saved machine is *Paused* after Create.
//!
//! All waiting for events is in [`Driver::run`]: one queue for the daemon's requests and the guest's doings. All change of
//! state is in [`Driver::apply`], which returns when the change is complete. What may be asked when is
//! [`control::VmState::may`]'s matter.

mod disk_changes;
mod moves;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chipset::GuestRequest;
use control::{EndReason, EndReport, Refusal, RefusalKind, VmAction, VmEvent, VmState, VmStatus};
use guestmem::GuestMemory;
use sandbox::{NewThread, ThreadKind};
use spec::{GenerationId, MachineSpec};

use crate::action::{Action, GuestEvent, Notice, Outlet, Reporter, Ticket};
use crate::build::BuildError;
use crate::disks::Disks;
use crate::files::MachineFiles;
use crate::hardware::{Blueprint, Hardware, Origin};
use crate::moving::Move;
use crate::story::whole;

/// Stack of the driver's thread, bytes; building a machine is the deepest it goes.
const STACK_BYTES: usize = 512 << 10;

/// Builds a machine that does not run yet.
pub(crate) type Builder = Box<dyn Fn(&Blueprint, Reporter, Origin<'_>) -> Result<Box<dyn Hardware>, BuildError> + Send>;

struct Machine {
    blueprint: Blueprint,
    /// `None` only while it is being rebuilt, and once it has ended.
    hardware: Option<Box<dyn Hardware>>,
    /// The hardware was started since it was built.
    started: bool,
}

/// The driver's own state; see the drawing above.
pub(crate) struct Driver {
    state: VmState,
    machine: Option<Machine>,
    builder: Builder,
    outlet: Outlet,
    /// Given to each build's [`Reporter`].
    queue: mpsc::Sender<Action>,
    generation: u32,
    resets: u32,
    start_asked: Option<Instant>,
    /// Names the machine in every line that is logged on its behalf.
    span: tracing::Span,
    first_entry_us: Option<u64>,
    /// While it moves to another process, or comes from one.
    moving: Option<Move>,
}

/// A way to reach a state driver. Clones reach the same one.
#[derive(Clone)]
pub struct DriverHandle(mpsc::Sender<Action>);

impl DriverHandle {
    /// Hands over `action`; what comes of it arrives at the outlet. Never blocks.
    pub fn send(&self, action: Action) {
        // Without a driver the machine has ended, and everybody was told.
        let _ = self.0.send(action);
    }
}

/// Starts a state driver without a machine, on a thread of its own.
pub fn spawn(console: Arc<dyn crate::Console>, outlet: Outlet) -> std::io::Result<DriverHandle> {
    let builder: Builder =
        Box::new(move |blueprint, reporter, origin| crate::build::build(blueprint, &console, &reporter, origin));
    let (queue, actions) = mpsc::channel();
    let driver = Driver::new(builder, outlet, queue.clone());
    NewThread::new(ThreadKind::StateDriver, "state-driver")
        .stack_bytes(STACK_BYTES)
        .spawn(move || driver.run(&actions))?;
    Ok(DriverHandle(queue))
}

impl Driver {
    pub(crate) fn new(builder: Builder, outlet: Outlet, queue: mpsc::Sender<Action>) -> Self {
        Self {
            state: VmState::Empty,
            machine: None,
            builder,
            outlet,
            queue,
            generation: 0,
            resets: 0,
            start_asked: None,
            span: tracing::Span::none(),
            first_entry_us: None,
            moving: None,
        }
    }

    /// Until the machine has ended. Requests that are queued by then are answered still.
    pub(crate) fn run(mut self, actions: &mpsc::Receiver<Action>) {
        while self.state != VmState::Ended {
            let Ok(action) = actions.recv() else { return };
            self.apply(action);
        }
        while let Ok(action) = actions.try_recv() {
            self.apply(action);
        }
    }

    pub(crate) fn apply(&mut self, action: Action) {
        let span = self.span.clone();
        let _named = span.enter();
        match action {
            Action::Create { ticket, machine, files } => self.create(ticket, *machine, files),
            Action::Ask { ticket, action, at } => self.ask(ticket, action, at),
            Action::Disk {
                ticket,
                disk,
                change,
                files,
            } => self.change_disk(ticket, &disk, change, files),
            Action::Save { ticket, directory } => self.save(ticket, directory),
            Action::Depart { ticket, depart, dialer } => self.depart(ticket, depart, dialer),
            Action::Arrive {
                ticket,
                machine,
                arrival,
            } => self.arrive(ticket, *machine, arrival),
            Action::Steer { ticket, action, steer } => self.steer(ticket, action, steer),
            Action::Move(order) => self.serve_move(order),
            Action::DiskJob { disk, news } => self.disk_job(&disk, news),
            Action::Terminate { message } => self.quit(message),
            Action::Guest { generation, event } if generation == self.generation => self.guest(event),
            Action::Guest { event, .. } => tracing::debug!(?event, "event of an earlier build of the machine"),
        }
    }

    fn status(&self) -> VmStatus {
        VmStatus {
            id: self.machine.as_ref().map(|machine| machine.blueprint.spec.id()),
            state: self.state,
            resets: self.resets,
            first_entry_us: self.first_entry_us,
        }
    }

    fn answer(&self, ticket: Ticket, answer: Result<VmStatus, Refusal>) {
        self.outlet.send(Notice::Answer { ticket, answer });
    }

    fn enter(&mut self, state: VmState) {
        tracing::info!(from = ?self.state, to = ?state, "machine changes its state");
        self.state = state;
        self.outlet.send(Notice::Status(self.status()));
        self.outlet.send(Notice::Event(VmEvent::StateChanged { state }));
    }

    /// The refusal of `action` in this state, if it must be refused.
    fn check(&self, action: VmAction) -> Result<(), Refusal> {
        if self.state.may(action) {
            return self.check_move(action);
        }
        Err(Refusal {
            kind: RefusalKind::WrongState,
            message: format!("{action:?} is not possible while the machine is {:?}", self.state).to_lowercase(),
        })
    }

    fn create(&mut self, ticket: Ticket, spec: MachineSpec, files: Result<Box<MachineFiles>, Refusal>) {
        if let Err(refusal) = self.check(VmAction::Create) {
            return self.answer(ticket, Err(refusal));
        }
        if self.become_machine(ticket, spec, files, VmState::Created).is_some() {
            self.answer(ticket, Ok(self.status()));
        }
    }

    /// Builds it, and enters `state`, or *Paused* where it was saved. Its memory; none where it can not be built, which was answered.
    fn become_machine(
        &mut self,
        ticket: Ticket,
        spec: MachineSpec,
        files: Result<Box<MachineFiles>, Refusal>,
        state: VmState,
    ) -> Option<GuestMemory> {
        let id = spec.id();
        self.span = tracing::info_span!("machine", %id, name = %spec.name());
        let span = self.span.clone();
        let _named = span.enter();
        let comes = state == VmState::Arriving;
        let built = files.and_then(|files| self.build_first(spec, *files, comes).map_err(|error| error.refusal()));
        match built {
            Ok(machine) => {
                let state = if machine.started { VmState::Paused } else { state };
                let memory = machine.hardware.as_ref().map(|hardware| hardware.memory());
                self.machine = Some(machine);
                self.enter(state);
                memory
            }
            Err(refusal) => {
                let message = refusal.message.clone();
                tracing::error!(%message, "machine can not be created");
                self.answer(ticket, Err(refusal));
                self.enter(VmState::Ended);
                let report = self.report(id, EndReason::BuildFailed, message);
                self.outlet.send(Notice::Ended(report));
                None
            }
        }
    }

    fn build_first(&mut self, spec: MachineSpec, mut files: MachineFiles, comes: bool) -> Result<Machine, BuildError> {
        let chains = std::mem::take(&mut files.disks);
        let disks = Disks::open(spec.disks(), chains).map_err(BuildError::Disk)?;
        // Where it was saved matters once: a reset boots it.
        let saved = files.saved.take();
        let blueprint = Blueprint {
            spec,
            files,
            disks,
            generation: GenerationId::random(),
        };
        let origin = match &saved {
            Some(saved) => Origin::Saved(saved),
            None if comes => Origin::Elsewhere,
            None => Origin::Boot,
        };
        match self.build(&blueprint, origin) {
            Ok(hardware) => Ok(Machine {
                blueprint,
                hardware: Some(hardware),
                started: saved.is_some(),
            }),
            Err(error) => {
                blueprint.disks.close();
                Err(error)
            }
        }
    }

    fn build(&mut self, blueprint: &Blueprint, origin: Origin<'_>) -> Result<Box<dyn Hardware>, BuildError> {
        self.generation += 1;
        let reporter = Reporter::new(self.generation, self.queue.clone());
        (self.builder)(blueprint, reporter, origin)
    }

    fn save(&mut self, ticket: Ticket, directory: Option<OwnedFd>) {
        let saved = self.check(VmAction::Save).and_then(|()| {
            let missing = || Refusal {
                kind: RefusalKind::BadFile,
                message: "no directory came along to save the machine into".to_owned(),
            };
            let directory = directory.ok_or_else(missing)?;
            let hardware = self.machine.as_ref().and_then(|machine| machine.hardware.as_ref());
            let saved = hardware.map_or(Ok(()), |hardware| hardware.save(directory.as_fd()));
            saved.map_err(|error| Refusal {
                kind: if error.is_disk_full() {
                    RefusalKind::NoSpace
                } else {
                    RefusalKind::Failed
                },
                message: format!("machine can not be saved: {}", whole(&error)),
            })
        });
        if saved.is_ok() {
            tracing::info!("machine saved");
        }
        self.answer(ticket, saved.map(|()| self.status()));
    }

    fn ask(&mut self, ticket: Ticket, action: VmAction, at: Instant) {
        if let Err(refusal) = self.check(action) {
            return self.answer(ticket, Err(refusal));
        }
        match action {
            VmAction::Start => {
                self.start_asked = Some(at);
                self.start(at);
                self.enter(VmState::Running);
            }
            VmAction::Pause => {
                self.pause();
                self.enter(VmState::Paused);
            }
            VmAction::Resume => {
                // What was saved elsewhere was never started here.
                self.start_asked.get_or_insert(at);
                self.resume();
                self.enter(VmState::Running);
            }
            VmAction::PowerButton => self.with_hardware(|hardware| hardware.press_power_button()),
            VmAction::Reset => self.reset(),
            VmAction::Quit => {
                self.dismantle();
                let ended = VmStatus {
                    state: VmState::Ended,
                    ..self.status()
                };
                self.answer(ticket, Ok(ended));
                return self.quit("ended because the daemon asked for it".to_owned());
            }
            VmAction::DiskReports => return self.report_disks(ticket),
            // They have their own ways in; the status is part of every answer.
            VmAction::Create
            | VmAction::ChangeDisk
            | VmAction::Save
            | VmAction::Depart
            | VmAction::SteerDeparture
            | VmAction::Arrive
            | VmAction::DecideArrival
            | VmAction::Status => {}
        }
        self.answer(ticket, Ok(self.status()));
    }

    fn guest(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::FirstEntry { at } => {
                if let (None, Some(asked)) = (self.first_entry_us, self.start_asked) {
                    let elapsed = at.saturating_duration_since(asked);
                    self.first_entry_us = u64::try_from(elapsed.as_micros()).ok();
                    self.outlet.send(Notice::Status(self.status()));
                }
            }
            GuestEvent::Request(GuestRequest::Reset) => self.reset(),
            GuestEvent::Request(GuestRequest::PowerOff) => {
                self.end(EndReason::GuestPowerOff, "the guest powered off".to_owned());
            }
            GuestEvent::Request(GuestRequest::DebugExit(code)) => {
                self.end(
                    EndReason::DebugExit { code },
                    format!("the guest left by the debug-exit port with code {code:#x}"),
                );
            }
            GuestEvent::TripleFault { message } => self.end(EndReason::TripleFault, message),
            GuestEvent::VcpuFailed { message } => self.end(EndReason::VcpuFailed, message),
        }
    }

    fn with_hardware(&mut self, act: impl FnOnce(&mut dyn Hardware)) {
        if let Some(hardware) = self.machine.as_mut().and_then(|machine| machine.hardware.as_mut()) {
            act(hardware.as_mut());
        }
    }

    fn start(&mut self, asked: Instant) {
        if let Some(machine) = &mut self.machine {
            machine.started = true;
        }
        self.with_hardware(|hardware| hardware.start(asked));
    }

    /// After a guest's reset that was handled while paused, going on means to start.
    fn resume(&mut self) {
        if self.machine.as_ref().is_some_and(|machine| machine.started) {
            self.with_hardware(|hardware| hardware.resume());
        } else {
            self.start(Instant::now());
        }
    }

    fn pause(&mut self) {
        if let Some(machine) = &mut self.machine
            && let Some(hardware) = &mut machine.hardware
        {
            machine.blueprint.disks.unlimited(|| hardware.pause());
        }
    }

    fn stop_hardware(&mut self) {
        if let Some(machine) = &mut self.machine
            && let Some(hardware) = machine.hardware.take()
        {
            machine.blueprint.disks.unlimited(|| hardware.tear_down());
        }
    }

    /// Ends hardware and disks for good: what the guest wrote is durable, and the images are whole, when this returns.
    fn dismantle(&mut self) {
        self.stop_hardware();
        if let Some(machine) = &mut self.machine {
            std::mem::take(&mut machine.blueprint.disks).close();
        }
    }

    /// Power-cycles: the same machine from the same files, in the same process.
    fn reset(&mut self) {
        self.move_is_overtaken();
        self.stop_hardware();
        let Some(mut machine) = self.machine.take() else { return };
        let built = self.build(&machine.blueprint, Origin::Boot);
        machine.started = false;
        let failure = match built {
            Ok(hardware) => {
                machine.hardware = Some(hardware);
                None
            }
            Err(error) => Some(error),
        };
        self.machine = Some(machine);
        if let Some(error) = failure {
            let message = format!("the machine could not be rebuilt on reset: {}", error.refusal().message);
            return self.end(EndReason::BuildFailed, message);
        }
        self.resets += 1;
        static RESETS: telemetry::RateLimited = telemetry::RateLimited::new();
        if let Some(admitted) = RESETS.admit() {
            tracing::info!(
                resets = self.resets,
                suppressed = admitted.suppressed,
                "guest was reset"
            );
        }
        self.outlet.send(Notice::Status(self.status()));
        self.outlet
            .send(Notice::Event(VmEvent::GuestReset { resets: self.resets }));
        if self.state == VmState::Running {
            self.start(Instant::now());
        }
    }

    fn quit(&mut self, message: String) {
        if self.machine.is_some() {
            self.end(EndReason::Requested, message);
        } else if self.state != VmState::Ended {
            self.enter(VmState::Ended);
            self.outlet.send(Notice::Abandoned);
        }
    }

    fn end(&mut self, reason: EndReason, message: String) {
        if self.state == VmState::Ended {
            return;
        }
        self.dismantle();
        // Words of the build that is gone now must not end the machine a second time.
        self.generation += 1;
        let Some(id) = self.machine.as_ref().map(|machine| machine.blueprint.spec.id()) else {
            return;
        };
        if reason.is_clean() {
            tracing::info!(?reason, %message, "machine ends");
        } else {
            tracing::error!(?reason, %message, "machine ends");
        }
        self.enter(VmState::Ended);
        let report = self.report(id, reason, message);
        self.outlet.send(Notice::Ended(report));
    }

    fn report(&self, id: spec::VmId, reason: EndReason, message: String) -> EndReport {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        EndReport {
            id,
            reason,
            message,
            resets: self.resets,
            at_unix_s: now.as_secs(),
        }
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
