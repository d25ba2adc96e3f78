//! The driver's part of moving: see `moving`.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use control::{
    DepartVm, DiskMove, EndReason, MIGRATION_STREAMS_MAX, MigrationNews, Refusal, RefusalKind, VmAction, VmEvent,
    VmState,
};
use migration::{Dialer, Fault, Handle, Phase, StateCost};
use spec::{DiskFormat, MachineSpec};

use super::Driver;
use crate::action::{Action, Notice, Ticket};
use crate::files::MachineFiles;
use crate::hardware::{Blueprint, Hardware};
use crate::moving::{self, Answer, Asking, Coming, Incoming, Leaving, Move, MoveOrder, Outcome, Steer, Word, refused};

/// What saving costs is measured anew after this long.
const COST_AGE: Duration = Duration::from_secs(10);

/// The machine that a move was about is not there any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the guest was reset or has ended: its memory is another one now")]
    Rebuilt,
}

fn wrong_state(message: &str) -> Refusal {
    Refusal {
        kind: RefusalKind::WrongState,
        message: message.to_owned(),
    }
}

/// What is kept in memory of a qcow2 image would be of a time at which the source still changed it.
fn check_disks(files: &MachineFiles) -> Result<(), Refusal> {
    let layers = files.disks.iter().flat_map(|chain| chain.0.iter());
    let mut shared = layers.map(|files| &files.layer);
    match shared.find(|layer| layer.writable && layer.format == DiskFormat::Qcow2) {
        None => Ok(()),
        Some(layer) => Err(Refusal {
            kind: RefusalKind::BadFile,
            message: format!(
                "{} is a qcow2 image that the source still writes: machines move with raw images on shared storage only",
                layer.name
            ),
        }),
    }
}

impl Driver {
    /// Why `action` has to wait for the end of a move, if it has to.
    pub(super) fn check_move(&self, action: VmAction) -> Result<(), Refusal> {
        let Some(moving) = &self.moving else { return Ok(()) };
        let refused = match action {
            VmAction::Depart => true,
            VmAction::Pause | VmAction::Resume | VmAction::Reset | VmAction::Save | VmAction::ChangeDisk => {
                moving.handle.is_some()
            }
            VmAction::PowerButton => moving.held,
            _ => false,
        };
        if refused {
            let action = format!("{action:?}").to_lowercase();
            return Err(wrong_state(&format!(
                "{action} is not possible while the machine moves: wait for the end of the migration, or cancel it"
            )));
        }
        Ok(())
    }

    fn orders(&self) -> Box<dyn Fn(MoveOrder) + Send + Sync> {
        let queue = self.queue.clone();
        Box::new(move |order| {
            // Without a driver the machine has ended; who waits for an answer finds that nobody can give it.
            let _ = queue.send(Action::Move(order));
        })
    }

    pub(super) fn depart(&mut self, ticket: Ticket, depart: Box<DepartVm>, dialer: Box<dyn Dialer + Send>) {
        let begun = self
            .check(VmAction::Depart)
            .and_then(|()| self.begin_departure(depart, dialer));
        self.answer(ticket, begun.map(|()| self.status()));
    }

    fn begin_departure(&mut self, depart: Box<DepartVm>, dialer: Box<dyn Dialer + Send>) -> Result<(), Refusal> {
        self.check_departure(&depart)?;
        // What can not be saved is found now, and not when the guest stands still.
        let cost = self.measure().map_err(|error| refused(&*error))?;
        let memory = self.hardware().map_err(|error| refused(&error))?.memory();
        let machine = self.machine.as_ref().map(|machine| machine.blueprint.spec.id());
        let machine = machine.ok_or_else(|| refused(&Lost::Rebuilt))?;
        let (words, inbox) = mpsc::channel();
        let handle = Handle::new(Phase::Scheduling, depart.options.bandwidth_bytes_per_s);
        let paused = self.state == VmState::Paused;
        let leaving = Leaving {
            machine,
            dialer,
            asking: Asking {
                orders: self.orders(),
                memory,
            },
            words: inbox,
            handle: handle.clone(),
            tell: self.orders(),
            paused,
            depart,
        };
        moving::spawn_departure(leaving).map_err(|error| refused(&error))?;
        tracing::info!("machine begins to move away");
        self.moving = Some(Move {
            generation: self.generation,
            words,
            handle: Some(handle),
            paused_before: paused,
            held: false,
            undecided: false,
            cost: Some((cost, Instant::now())),
            loaded_at: None,
        });
        Ok(())
    }

    fn check_departure(&self, depart: &DepartVm) -> Result<(), Refusal> {
        let failed = |message: String| Refusal {
            kind: RefusalKind::Failed,
            message,
        };
        let streams = depart.options.streams;
        if !(1..=MIGRATION_STREAMS_MAX).contains(&streams) {
            return Err(failed(format!(
                "{streams} streams for pages; use 1 to {MIGRATION_STREAMS_MAX}"
            )));
        }
        let disks = self.machine.as_ref().map(|machine| &machine.blueprint.disks);
        for wish in &depart.disks {
            if disks.is_none_or(|disks| disks.get(&wish.name).is_none()) {
                return Err(Refusal {
                    kind: RefusalKind::NoSuchDisk,
                    message: format!("the machine has no disk {}", wish.name),
                });
            }
            if wish.how == DiskMove::Mirrored {
                return Err(failed(format!(
                    "disk {} can not be copied to the target: this version moves disks on shared storage only",
                    wish.name
                )));
            }
        }
        let busy = disks.and_then(|disks| disks.iter().find(|disk| disk.is_at_work()));
        match busy {
            Some(disk) => Err(wrong_state(&format!(
                "a job is at work on disk {}: wait for its end, or cancel it",
                disk.spec.name
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn arrive(
        &mut self,
        ticket: Ticket,
        spec: MachineSpec,
        arrival: Result<(Box<MachineFiles>, Incoming), Refusal>,
    ) {
        if let Err(refusal) = self.check(VmAction::Arrive) {
            return self.answer(ticket, Err(refusal));
        }
        let id = spec.id();
        let arrival = arrival.and_then(|(files, incoming)| check_disks(&files).map(|()| (files, incoming)));
        let (files, incoming) = match arrival {
            Ok((files, incoming)) => (Ok(files), Some(incoming)),
            Err(refusal) => (Err(refusal), None),
        };
        let memory = self.become_machine(ticket, spec, files, VmState::Arriving);
        let (Some(memory), Some(incoming)) = (memory, incoming) else {
            return;
        };
        let (words, inbox) = mpsc::channel();
        let coming = Coming {
            machine: id,
            incoming,
            asking: Asking {
                orders: self.orders(),
                memory,
            },
            words: inbox,
        };
        if let Err(error) = moving::spawn_arrival(coming) {
            let refusal = refused(&error);
            let message = refusal.message.clone();
            self.answer(ticket, Err(refusal));
            return self.end(EndReason::ArrivalFailed, message);
        }
        self.moving = Some(Move {
            generation: self.generation,
            words,
            handle: None,
            paused_before: false,
            held: false,
            undecided: false,
            cost: None,
            loaded_at: None,
        });
        self.answer(ticket, Ok(self.status()));
    }

    pub(super) fn steer(&mut self, ticket: Ticket, action: VmAction, steer: Steer) {
        let steered = self.check(action).and_then(|()| self.try_steer(steer));
        self.answer(ticket, steered.map(|()| self.status()));
    }

    fn try_steer(&mut self, steer: Steer) -> Result<(), Refusal> {
        let none = || wrong_state("the machine does not move");
        let moving = self.moving.as_mut().ok_or_else(none)?;
        match steer {
            Steer::Tune(bytes_per_s) => moving.handle.as_ref().ok_or_else(none)?.set_bandwidth(bytes_per_s),
            Steer::Cancel => {
                let handle = moving.handle.as_ref().ok_or_else(none)?;
                handle.cancel().map_err(|error| wrong_state(&error.to_string()))?;
            }
            Steer::Word(Word::Decided { .. }) if !moving.undecided => {
                return Err(wrong_state("nobody has asked where the machine is"));
            }
            Steer::Word(word) => {
                if matches!(word, Word::Decided { .. }) {
                    moving.undecided = false;
                }
                // A thread that has ended has said how.
                let _ = moving.words.send(word);
            }
        }
        Ok(())
    }

    /// What the migration thread wants.
    pub(super) fn serve_move(&mut self, order: MoveOrder) {
        match order {
            MoveOrder::Begin(answer) => self.reply(&answer, |this| this.hardware()?.log_writes(true)),
            MoveOrder::TakeDirty(answer) => self.reply(&answer, |this| this.hardware()?.take_written()),
            MoveOrder::Cost(answer) => self.reply(&answer, Self::measure),
            MoveOrder::Throttle(percent) => {
                if let Ok(hardware) = self.hardware() {
                    tracing::info!(percent, "vcpus are slowed");
                    hardware.throttle(percent);
                }
            }
            MoveOrder::Pause(answer) => self.hold(answer),
            MoveOrder::Paused(answer) => self.reply(&answer, |this| this.hardware().map(drop).map_err(Into::into)),
            MoveOrder::Save(answer) => self.reply(&answer, |this| this.hardware()?.state()),
            MoveOrder::Stay(answer) => self.reply(&answer, Self::stay),
            MoveOrder::Departed(answer) => self.reply(&answer, Self::give_up),
            MoveOrder::Load { state, paused, answer } => self.reply(&answer, |this| this.load(&state, paused)),
            MoveOrder::Start(answer) => self.reply(&answer, Self::go_on),
            MoveOrder::Discard(answer) => self.reply(&answer, |this| {
                this.stop_hardware();
                Ok(())
            }),
            MoveOrder::Tell(news) => self.tell(news),
            MoveOrder::Over(outcome) => self.move_is_over(outcome),
        }
    }

    fn reply<T>(&mut self, answer: &Answer<T>, act: impl FnOnce(&mut Self) -> Result<T, Fault>) {
        let done = act(self);
        // The thread waits for it, unless it died of a defect.
        let _ = answer.send(done);
    }

    /// The hardware that the move is about.
    fn hardware(&mut self) -> Result<&mut dyn Hardware, Lost> {
        let generation = self.generation;
        let same = self
            .moving
            .as_ref()
            .is_none_or(|moving| moving.generation == generation);
        let hardware = self.machine.as_mut().and_then(|machine| machine.hardware.as_mut());
        match hardware {
            Some(hardware) if same => Ok(hardware.as_mut()),
            _ => Err(Lost::Rebuilt),
        }
    }

    fn stands_still(&self) -> bool {
        self.state == VmState::Paused || self.moving.as_ref().is_some_and(|moving| moving.held)
    }

    /// What saving costs: tried out. The guest stands still for it, so it is not done often.
    fn measure(&mut self) -> Result<StateCost, Fault> {
        if let Some((cost, at)) = self.moving.as_ref().and_then(|moving| moving.cost)
            && at.elapsed() < COST_AGE
        {
            return Ok(cost);
        }
        self.hardware()?;
        let running = !self.stands_still();
        if running {
            self.pause();
        }
        let begin = Instant::now();
        let state = self.hardware()?.state();
        // What was saved is loaded in about the same time.
        let time = begin.elapsed() * 2;
        if running {
            self.resume();
        }
        let bytes = state?.len() as u64;
        let cost = StateCost { bytes, time };
        if let Some(moving) = &mut self.moving {
            moving.cost = Some((cost, Instant::now()));
        }
        Ok(cost)
    }

    /// Pauses, and answers when what the guest did before has been dealt with: it may have ended itself.
    fn hold(&mut self, answer: Answer<()>) {
        if let Err(error) = self.hardware() {
            return self.reply(&answer, |_| Err(error.into()));
        }
        if !self.stands_still() {
            self.pause();
            if let Some(moving) = &mut self.moving {
                moving.held = true;
            }
        }
        // Behind all that vCPUs have told until they stood still.
        let _ = self.queue.send(Action::Move(MoveOrder::Paused(answer)));
    }

    fn stay(&mut self) -> Result<(), Fault> {
        // A machine that was rebuilt goes its own way already.
        let Ok(hardware) = self.hardware() else { return Ok(()) };
        hardware.throttle(0);
        let logged = hardware.log_writes(false);
        let held = self.moving.as_mut().map(|moving| std::mem::take(&mut moving.held));
        if held == Some(true) {
            self.resume();
        }
        logged
    }

    /// The departure is on record. The disks are closed when this returns, and the machine can not run any more.
    fn give_up(&mut self) -> Result<(), Fault> {
        self.dismantle();
        self.generation += 1;
        self.tell(MigrationNews::Departed);
        self.enter(VmState::Departed);
        Ok(())
    }

    fn load(&mut self, state: &[u8], paused: bool) -> Result<(), Fault> {
        let begin = Instant::now();
        self.hardware()?.load_state(state)?;
        if let Some(moving) = &mut self.moving {
            moving.loaded_at = Some(begin);
            moving.paused_before = paused;
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<(), Fault> {
        let paused = self.moving.as_ref().is_some_and(|moving| moving.paused_before);
        self.hardware()?;
        if let Some(machine) = &mut self.machine {
            machine.started = true;
        }
        if !paused {
            self.resume();
        }
        let since = self.moving.as_ref().and_then(|moving| moving.loaded_at);
        let downtime = since.map(|since| since.elapsed()).unwrap_or_default();
        self.enter(if paused { VmState::Paused } else { VmState::Running });
        self.announce();
        let downtime_us = u64::try_from(downtime.as_micros()).unwrap_or(u64::MAX);
        self.tell(MigrationNews::Arrived { downtime_us });
        Ok(())
    }

    /// On all networks, by the first queue of each tap.
    fn announce(&self) {
        let Some(Blueprint { spec, files, .. }) = self.machine.as_ref().map(|machine| &machine.blueprint) else {
            return;
        };
        let interfaces = spec.nets().iter().zip(&files.taps);
        let interfaces = interfaces.filter_map(|(net, queues)| Some((net.mac, queues.first()?.try_clone().ok()?)));
        if let Err(error) = moving::announce(interfaces.collect()) {
            tracing::warn!(%error, "the machine can not be announced on its networks");
        }
    }

    fn tell(&mut self, news: MigrationNews) {
        if let (MigrationNews::Decide { .. } | MigrationNews::InDoubt { .. }, Some(moving)) = (&news, &mut self.moving)
        {
            moving.undecided = true;
        }
        if !matches!(news, MigrationNews::Progress(_)) {
            tracing::info!(?news, "migration");
        }
        self.outlet.send(Notice::Event(VmEvent::Migration(news)));
    }

    fn move_is_over(&mut self, outcome: Outcome) {
        self.moving = None;
        match outcome {
            Outcome::Gone => {
                let message = "the machine moved away, and nothing of it is needed here any more";
                self.end(EndReason::Departed, message.to_owned());
            }
            Outcome::Stayed { reason, cancelled } => self.tell(MigrationNews::Stayed { reason, cancelled }),
            Outcome::Arrived => self.tell(MigrationNews::Complete),
            Outcome::Discarded { reason } => {
                self.tell(MigrationNews::ArrivalFailed { reason: reason.clone() });
                self.end(
                    EndReason::ArrivalFailed,
                    format!("the machine did not arrive: {reason}"),
                );
            }
        }
    }

    /// A reset makes another machine of it, as far as a departure is concerned.
    pub(super) fn move_is_overtaken(&self) {
        if let Some(handle) = self.moving.as_ref().and_then(|moving| moving.handle.as_ref()) {
            // Refused when it is too late, and then the guest does not run and resets nothing.
            let _ = handle.cancel();
        }
    }
}
