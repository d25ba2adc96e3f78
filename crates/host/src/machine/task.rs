//! The task of one machine: all waiting is in [`Task::wait`], all deciding in [`super::lifecycle`].

mod held;
mod moves;
mod requests;

use std::collections::HashMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, OperationKind, OperationPhase, Vm, VmPhase, VmStatus};
use control::{FromVm, Hello, MigrationKey, MigrationNews, VmEvent, VmRequest};
use jiff::Timestamp;
use spec::OperationId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) use self::held::HeldStep;
pub(super) use self::moves::MoveOrder;
use self::requests::{Answer, Waiting};
use super::launch::{Launched, launch};
use super::lifecycle::{Ask, Effect, Happened, Lifecycle};
use super::link::{Link, LinkError};
use super::process::{self, Exit, Process};
use super::run_dir::RunDir;
use super::{Action, Conditional, Machine, Order, Reply};
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::operations::{Finish, Worker};
use crate::registry::OperationRecord;

/// How long a process that was told to end has before it is killed: time to write the tables of its images.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before a lost connection is made again.
const RELINK_DELAY: Duration = Duration::from_secs(1);

pub(super) type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A launch under way.
struct Launching {
    result: Pending<Result<Launched, Failure>>,
    give_up: CancellationToken,
}

/// What is due at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Shutdown,
    End,
}

/// Why the task woke up.
enum Wake {
    Order(Option<Conditional>),
    Launch(Result<Launched, Failure>),
    Frame(Result<FromVm, LinkError>),
    Exit(Exit),
    Linked(Result<(Link, Hello), LinkError>),
    Clock,
}

/// One machine. Fields are touched by its task alone.
pub(super) struct Task {
    pub(super) context: Arc<Context>,
    pub(super) vm: Vm,
    pub(super) life: Lifecycle,
    pub(super) run: RunDir,
    pub(super) process: Option<Process>,
    pub(super) link: Option<Link>,
    /// What the registry has.
    pub(super) saved: VmStatus,
    /// Operations whose end is not in the registry yet.
    pub(super) unsaved: Vec<Finish>,
    pub(super) save_again: Option<Instant>,
    /// When resets of the guest were written last.
    pub(super) resets_saved: Option<Instant>,
    /// A snapshot of it is being taken.
    pub(super) held: bool,
    orders: mpsc::Receiver<Conditional>,
    myself: mpsc::WeakSender<Conditional>,
    launching: Option<Launching>,
    linking: Option<Pending<Result<(Link, Hello), LinkError>>>,
    waiting: HashMap<u64, Waiting>,
    due: Option<(Instant, Due)>,
    stop_timeout: Duration,
    /// A departure that could not be written down, and when that is tried again.
    undecided: Option<(Instant, MigrationKey)>,
    deleted: bool,
}

impl Task {
    pub(super) fn new(
        context: Arc<Context>,
        vm: Vm,
        orders: mpsc::Receiver<Conditional>,
        myself: mpsc::WeakSender<Conditional>,
    ) -> Self {
        Self {
            life: Lifecycle::new(&vm.spec.name, vm.status.clone()),
            run: RunDir::new(&context.config.run_dir, vm.id),
            process: None,
            link: None,
            saved: vm.status.clone(),
            unsaved: Vec::new(),
            save_again: None,
            resets_saved: None,
            held: false,
            orders,
            myself,
            launching: None,
            linking: None,
            waiting: HashMap::new(),
            due: None,
            stop_timeout: context.config.stop_timeout,
            undecided: None,
            deleted: false,
            context,
            vm,
        }
    }

    /// Until the machine is deleted or nobody holds it any more. The process goes on either way.
    pub(super) async fn run(mut self) {
        self.read_departure().await;
        if self.launching.is_none() {
            self.adopt().await;
        }
        while !self.deleted {
            match self.wait().await {
                Wake::Order(None) => return,
                Wake::Order(Some(conditional)) => self.obey(conditional).await,
                Wake::Launch(result) => self.launched(result),
                Wake::Frame(Ok(FromVm::Event(VmEvent::Migration(news)))) => self.moved(news).await,
                Wake::Frame(Ok(frame)) => self.heard(frame),
                Wake::Frame(Err(error)) => self.link_lost(&error),
                Wake::Exit(exit) => self.exited(exit),
                Wake::Linked(result) => {
                    if let Some(news) = self.linked(result) {
                        self.moved(news).await;
                    }
                }
                Wake::Clock => {
                    self.clock();
                    if let Some((_, key)) = self.undecided.filter(|(at, _)| *at <= Instant::now()) {
                        self.decide(key).await;
                    }
                }
            }
            self.save().await;
        }
    }

    async fn wait(&mut self) -> Wake {
        if self.process.is_some() && self.link.is_none() && self.linking.is_none() {
            let socket = self.run.control();
            self.linking = Some(Box::pin(async move {
                tokio::time::sleep(RELINK_DELAY).await;
                Link::open(&socket).await
            }));
        }
        let wake_at = self.wake_at();
        let Self {
            orders,
            launching,
            link,
            linking,
            process,
            ..
        } = self;
        tokio::select! {
            order = orders.recv() => Wake::Order(order),
            result = async { match launching { Some(launching) => launching.result.as_mut().await, None => pending().await } } => Wake::Launch(result),
            frame = async { match link { Some(link) => link.recv().await, None => pending().await } } => Wake::Frame(frame),
            result = async { match linking { Some(linking) => linking.as_mut().await, None => pending().await } } => Wake::Linked(result),
            exit = async { match process { Some(process) => process.exited().await, None => pending().await } } => Wake::Exit(exit),
            () = async { match wake_at { Some(at) => tokio::time::sleep_until(at.into()).await, None => pending().await } } => Wake::Clock,
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let due = self.due.map(|(at, _)| at);
        let answers = self.waiting.values().map(|waiting| waiting.until).min();
        // What could not be written is not tried again for the sake of resets.
        let save = self.save_again.or_else(|| self.resets_due());
        let decide = self.undecided.map(|(at, _)| at);
        [due, answers, save, decide].into_iter().flatten().min()
    }

    async fn obey(&mut self, conditional: Conditional) {
        let Conditional { order, revision } = conditional;
        let checked = self.check(order.disturbs(), revision).await;
        match order {
            Order::Start { asked_at, reply } => {
                let id = OperationId::random();
                let answer = match checked {
                    Ok(()) => self.begin(Ask::Start(id), id, OperationKind::VmStart, asked_at).await,
                    Err(failure) => Err(failure),
                };
                let _ = reply.send(answer); // Whoever asked may have gone.
            }
            Order::Stop { force, timeout, reply } => {
                let operation = OperationId::random();
                let answer = match checked {
                    Ok(()) => {
                        self.stop_timeout = timeout;
                        let ask = Ask::Stop { operation, force };
                        self.begin(ask, operation, OperationKind::VmStop, Instant::now()).await
                    }
                    Err(failure) => Err(failure),
                };
                let _ = reply.send(answer); // As above.
            }
            Order::Act { action, reply } => match checked {
                Ok(()) => self.act(action, reply),
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Order::Disk { change, reply } => match checked {
                Ok(()) => self.change_disk(change, reply).await,
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Order::DiskReports { reply } => self.ask_for_disks(reply),
            Order::Steer { order, reply } => match checked {
                Ok(()) => self.steer(order, reply).await,
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Order::SettleArrival { is_ours, reply } => {
                let _ = reply.send(self.settle_arrival(is_ours).await); // As above.
            }
            Order::Cancel(operation) => {
                let effects = self.life.happened(Happened::Cancelled(operation));
                self.carry_out(effects);
            }
            Order::Edit { edit, live, reply } => {
                let ask = if live { Ask::ChangeDisk } else { Ask::Edit };
                let answer = match checked.and_then(|()| self.life.ask(ask)) {
                    Ok(_) => self.edit(edit).await,
                    Err(failure) => Err(failure),
                };
                let _ = reply.send(answer); // As above.
            }
            Order::Hold { reply } => drop(reply.send(checked.and_then(|()| self.hold()))), // As above.
            Order::Held { step, reply } => self.held_step(step, reply).await,
            Order::Release => self.release(),
            Order::StandsAlone { reply } => {
                let _ = reply.send(self.note_flattened().await); // As above.
            }
            Order::Delete { reply } => {
                let answer = match checked.and_then(|()| self.life.ask(Ask::Delete)) {
                    Ok(_) => self.delete_record().await,
                    Err(failure) => Err(failure),
                };
                self.deleted = answer.is_ok();
                let _ = reply.send(answer); // As above.
            }
        }
    }

    /// Begins an operation: it and the new phase are in the registry before anything is done.
    async fn begin(
        &mut self,
        ask: Ask,
        id: OperationId,
        kind: OperationKind,
        asked_at: Instant,
    ) -> Result<OperationRecord, Failure> {
        let before = self.life.clone();
        let effects = self.life.ask(ask)?;
        if kind == OperationKind::VmStart {
            self.life.status.started_at = None;
            self.life.status.start_to_guest_us = None;
        }
        let record = match self.save_with(id, kind).await {
            Ok(record) => record,
            Err(failure) => {
                self.life = before;
                return Err(failure);
            }
        };
        if let Some(sender) = self.myself.upgrade() {
            let machine = Machine(sender);
            let cancel = Box::new(move |id| machine.cancel(id));
            self.context.operations.begin(id, Worker::Machine(cancel));
        }
        if effects.contains(&Effect::Launch) {
            let give_up = CancellationToken::new();
            let work = launch(Arc::clone(&self.context), self.vm.clone(), asked_at, give_up.clone());
            self.launching = Some(Launching {
                result: Box::pin(work),
                give_up,
            });
        }
        self.carry_out(effects);
        Ok(record)
    }

    fn act(&mut self, action: Action, reply: Reply<()>) {
        let ask = match action {
            Action::Pause => Ask::Pause,
            Action::Resume => Ask::Resume,
            Action::Reset => Ask::Reset,
        };
        let sent = self.life.ask(ask).and_then(|effects| {
            let mut number = Err(Failure::new(ErrorCode::Internal, "nothing to send"));
            for effect in effects {
                if let Effect::Send(request) = effect {
                    number = self.send(request);
                }
            }
            number
        });
        self.await_answer(sent, Answer::Done(reply));
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                // Begun where the request's own facts are at hand.
                Effect::Launch => {}
                Effect::AbortLaunch => {
                    if let Some(launching) = &self.launching {
                        launching.give_up.cancel();
                    }
                }
                Effect::Send(request) => {
                    if let Err(failure) = self.send(request) {
                        tracing::warn!(error = %failure, "request did not reach the machine process");
                    }
                }
                Effect::End => {
                    if self.send(VmRequest::Quit).is_err() {
                        self.kill();
                    }
                    self.due = Some((Instant::now() + END_TIMEOUT, Due::End));
                }
                Effect::AwaitShutdown => self.due = Some((Instant::now() + self.stop_timeout, Due::Shutdown)),
                Effect::Forget => self.due = None,
                Effect::Finish(id, phase, failure) => self.unsaved.push(Finish { id, phase, failure }),
            }
        }
    }

    fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    fn launched(&mut self, result: Result<Launched, Failure>) {
        self.launching = None;
        let happened = match result {
            Ok(launched) => {
                if self.life.phase() != VmPhase::Arriving {
                    self.life.status.started_at = Some(Timestamp::now());
                }
                let happened = Happened::Launched {
                    pid: launched.process.pid(),
                    start_to_guest_us: launched.start_to_guest_us,
                };
                self.process = Some(launched.process);
                self.link = Some(launched.link);
                let effects = self.life.happened(happened);
                self.carry_out(effects);
                // It may have been reset, or its vCPUs ended, while the first instruction was waited for.
                self.apply_status(&launched.status);
                return;
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "machine did not start");
                Happened::LaunchFailed(failure)
            }
        };
        let effects = self.life.happened(happened);
        self.carry_out(effects);
    }

    fn heard(&mut self, frame: FromVm) {
        match frame {
            FromVm::Done { number, status } => {
                self.apply_status(&status);
                self.answered(number, Ok(None));
            }
            FromVm::Refused { number, refusal } => self.answered(number, Err(refusal)),
            FromVm::Disks { number, disks } => self.answered(number, Ok(Some(disks))),
            FromVm::Event(VmEvent::StateChanged { state }) => self.note(Happened::State(state)),
            FromVm::Event(VmEvent::GuestReset { resets }) => self.note(Happened::Resets(resets)),
            FromVm::Event(VmEvent::DiskJob { disk, job, state }) => {
                tracing::info!(%disk, ?job, ?state, "work on a disk");
            }
            // The process ends now; its report is read when it is gone.
            // Awaited by the caller.
            FromVm::Event(VmEvent::Migration(_)) => {}
            FromVm::Event(VmEvent::Ended { report }) => tracing::info!(why = report.message, "machine ended"),
            FromVm::Hello(_) => tracing::warn!("machine process introduced itself twice"),
        }
    }

    /// Takes over what the process says of itself.
    pub(super) fn apply_status(&mut self, status: &control::VmStatus) {
        self.note(Happened::State(status.state));
        self.note(Happened::Resets(status.resets));
    }

    fn note(&mut self, happened: Happened) {
        let effects = self.life.happened(happened);
        self.carry_out(effects);
    }

    fn link_lost(&mut self, error: &LinkError) {
        tracing::debug!(error = chain(error), "connection to the machine process is gone");
        self.link = None;
        self.unanswered(error);
    }

    /// Returns what the process told last of a move.
    fn linked(&mut self, result: Result<(Link, Hello), LinkError>) -> Option<MigrationNews> {
        self.linking = None;
        match result {
            Ok((link, hello)) if self.process.as_ref().is_some_and(|process| process.pid() == hello.pid) => {
                self.link = Some(link);
                self.apply_status(&hello.status);
                return hello.migration;
            }
            Ok((_, hello)) => tracing::warn!(pid = hello.pid, "another process answers for this machine"),
            Err(error) => tracing::debug!(error = chain(&error), "machine process does not answer"),
        }
        None
    }

    /// The machine comes from elsewhere: `result` is its process, built and waiting.
    pub(super) fn receive(mut self, result: Pending<Result<Launched, Failure>>) -> Self {
        let give_up = CancellationToken::new();
        self.launching = Some(Launching { result, give_up });
        self
    }

    pub(super) fn exited(&mut self, exit: Exit) {
        self.process = None;
        self.linking = None;
        if self.link.take().is_some() || !self.waiting.is_empty() {
            self.link_lost(&LinkError::Closed);
        }
        let end = process::end(exit, self.run.report());
        if end.clean || self.life.phase() == VmPhase::Stopping {
            tracing::info!(reason = end.reason, why = end.message, "machine process ended");
        } else {
            tracing::error!(reason = end.reason, why = end.message, "machine process ended");
        }
        self.note(Happened::Exited(end));
        self.undecided = None;
        self.context.moves.silent(self.vm.id);
        if let Err(error) = self.run.remove() {
            tracing::warn!(path = %self.run.path().display(), %error, "run directory can not be removed");
        }
    }

    fn clock(&mut self) {
        let now = Instant::now();
        if self.save_again.is_some_and(|at| at <= now) {
            self.save_again = None;
        }
        self.give_up_waiting(now);
        match self.due {
            Some((at, Due::Shutdown)) if at <= now => {
                self.due = None;
                self.note(Happened::StopTimedOut);
            }
            Some((at, Due::End)) if at <= now => {
                self.due = None;
                tracing::warn!("machine process does not end by itself and is killed");
                self.kill();
            }
            _ => {}
        }
    }
}

impl Finish {
    pub(super) fn outcome(&self) -> (OperationPhase, Result<Option<&str>, &Failure>) {
        (self.phase, self.failure.as_ref().map_or(Ok(None), Err))
    }
}
