//! The task of one machine: all waiting is in [`Task::wait`], all deciding in [`super::lifecycle`].

use std::collections::HashMap;
use std::future::{Future, pending};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, OperationKind, OperationPhase, Vm, VmPhase, VmStatus};
use control::{DiskReport, FromVm, Hello, RefusalKind, VmEvent, VmRequest};
use jiff::Timestamp;
use spec::OperationId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::launch::{Launched, launch};
use super::lifecycle::{Ask, Effect, Happened, Lifecycle};
use super::link::{Link, LinkError};
use super::process::{self, Exit, Process};
use super::run_dir::RunDir;
use super::{Action, Conditional, DiskOrder, Machine, Order, Reply};
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::operations::{Finish, Worker};
use crate::registry::OperationRecord;

/// How long a process that was told to end has before it is killed: time to write the tables of its images.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process has to carry out a pause, resume or reset.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process has to take in a request with files.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before a lost connection is made again.
const RELINK_DELAY: Duration = Duration::from_secs(1);

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

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

/// Somebody who waits for the process to answer.
struct Waiting {
    reply: Answer,
    until: Instant,
}

/// Where an answer goes. Whoever asked may have gone.
enum Answer {
    Done(Reply<()>),
    Disks(Reply<Vec<DiskReport>>),
}

impl Answer {
    fn fail(self, failure: Failure) {
        match self {
            Self::Done(reply) => drop(reply.send(Err(failure))),
            Self::Disks(reply) => drop(reply.send(Err(failure))),
        }
    }
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
    orders: mpsc::Receiver<Conditional>,
    myself: mpsc::WeakSender<Conditional>,
    launching: Option<Launching>,
    linking: Option<Pending<Result<(Link, Hello), LinkError>>>,
    waiting: HashMap<u64, Waiting>,
    due: Option<(Instant, Due)>,
    stop_timeout: Duration,
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
            orders,
            myself,
            launching: None,
            linking: None,
            waiting: HashMap::new(),
            due: None,
            stop_timeout: context.config.stop_timeout,
            deleted: false,
            context,
            vm,
        }
    }

    /// Until the machine is deleted or nobody holds it any more. The process goes on either way.
    pub(super) async fn run(mut self) {
        self.adopt().await;
        while !self.deleted {
            match self.wait().await {
                Wake::Order(None) => return,
                Wake::Order(Some(conditional)) => self.obey(conditional).await,
                Wake::Launch(result) => self.launched(result),
                Wake::Frame(Ok(frame)) => self.heard(frame),
                Wake::Frame(Err(error)) => self.link_lost(&error),
                Wake::Exit(exit) => self.exited(exit),
                Wake::Linked(result) => self.linked(result),
                Wake::Clock => self.clock(),
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
        [due, answers, self.save_again].into_iter().flatten().min()
    }

    async fn obey(&mut self, conditional: Conditional) {
        let Conditional { order, revision } = conditional;
        let checked = match revision {
            Some(wanted) => self.check_revision(wanted).await,
            None => Ok(()),
        };
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
            Order::DiskReports { reply } => {
                let sent = self.life.ask(Ask::ChangeDisk);
                let sent = sent.and_then(|_| self.send(VmRequest::DiskReports));
                self.await_answer(sent, Answer::Disks(reply));
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

    async fn change_disk(&mut self, order: DiskOrder, reply: Reply<()>) {
        let request = VmRequest::Disk {
            disk: order.disk,
            change: order.change,
        };
        let sent = match self.life.ask(Ask::ChangeDisk) {
            Ok(_) if order.fds.is_empty() => self.send(request),
            Ok(_) => self.send_files(request, &order.fds).await,
            Err(failure) => Err(failure),
        };
        self.await_answer(sent, Answer::Done(reply));
    }

    fn await_answer(&mut self, sent: Result<u64, Failure>, reply: Answer) {
        match sent {
            Ok(number) => {
                let until = Instant::now() + ANSWER_TIMEOUT;
                self.waiting.insert(number, Waiting { reply, until });
            }
            Err(failure) => reply.fail(failure),
        }
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

    fn send(&mut self, request: VmRequest) -> Result<u64, Failure> {
        self.linked_process()?
            .send(request)
            .map_err(|error| Failure::of(ErrorCode::MachineFailed, &error))
    }

    /// A process that does not read what is sent to it is not waited for.
    async fn send_files(&mut self, request: VmRequest, fds: &[OwnedFd]) -> Result<u64, Failure> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sending = self.linked_process()?.send_files(request, &fds);
        let sent = match tokio::time::timeout(SEND_TIMEOUT, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(LinkError::Silent),
        };
        if let Err(error) = &sent {
            // A message may have gone in part, so nothing can follow it.
            self.link_lost(error);
        }
        sent.map_err(|error| Failure::of(ErrorCode::MachineFailed, &error))
    }

    fn linked_process(&mut self) -> Result<&mut Link, Failure> {
        self.link.as_mut().ok_or_else(|| {
            Failure::new(
                ErrorCode::MachineFailed,
                "the machine process does not answer at the moment; try again, or stop it with force",
            )
        })
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
                self.life.status.started_at = Some(Timestamp::now());
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
                if let Some(Waiting {
                    reply: Answer::Done(reply),
                    ..
                }) = self.waiting.remove(&number)
                {
                    let _ = reply.send(Ok(())); // Whoever asked may have gone.
                }
            }
            FromVm::Refused { number, refusal } => match self.waiting.remove(&number) {
                Some(waiting) => {
                    let code = match refusal.kind {
                        RefusalKind::NoSuchDisk => ErrorCode::NotFound,
                        _ => ErrorCode::WrongState,
                    };
                    waiting.reply.fail(Failure::new(code, refusal.message));
                }
                None => tracing::warn!(why = refusal.message, "machine process refused a request"),
            },
            FromVm::Event(VmEvent::StateChanged { state }) => self.note(Happened::State(state)),
            FromVm::Event(VmEvent::GuestReset { resets }) => self.note(Happened::Resets(resets)),
            FromVm::Event(VmEvent::DiskJob { disk, job, state }) => {
                tracing::info!(%disk, ?job, ?state, "work on a disk");
            }
            // The process ends now; its report is read when it is gone.
            FromVm::Event(VmEvent::Ended { report }) => tracing::info!(why = report.message, "machine ended"),
            FromVm::Disks { number, disks } => match self.waiting.remove(&number) {
                Some(Waiting {
                    reply: Answer::Disks(reply),
                    ..
                }) => drop(reply.send(Ok(disks))), // As above.
                _ => tracing::warn!(number, "nobody asked the machine process for its disks"),
            },
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
        for (_, waiting) in self.waiting.drain() {
            waiting.reply.fail(Failure::of(ErrorCode::MachineFailed, error));
        }
    }

    fn linked(&mut self, result: Result<(Link, Hello), LinkError>) {
        self.linking = None;
        match result {
            Ok((link, hello)) if self.process.as_ref().is_some_and(|process| process.pid() == hello.pid) => {
                self.link = Some(link);
                self.apply_status(&hello.status);
            }
            Ok((_, hello)) => tracing::warn!(pid = hello.pid, "another process answers for this machine"),
            Err(error) => tracing::debug!(error = chain(&error), "machine process does not answer"),
        }
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
        if let Err(error) = self.run.remove() {
            tracing::warn!(path = %self.run.path().display(), %error, "run directory can not be removed");
        }
    }

    fn clock(&mut self) {
        let now = Instant::now();
        if self.save_again.is_some_and(|at| at <= now) {
            self.save_again = None;
        }
        let late: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.until <= now)
            .map(|(number, _)| *number)
            .collect();
        for waiting in late.into_iter().filter_map(|number| self.waiting.remove(&number)) {
            let text = format!(
                "the machine process did not answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            );
            waiting.reply.fail(Failure::new(ErrorCode::Timeout, text));
        }
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
