//! The control loop: daemons on one side, the state driver on the other, and nothing that takes time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use control::{
    CreateVm, DiskChange, FdRole, FromVm, Hello, MigrationNews, PROTOCOL_VERSION, Refusal, RefusalKind, ToVm, VmAction,
    VmEvent, VmRequest, VmState, VmStatus,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use sandbox::ThreadKind;
use spec::Name;
use vmm::{Action, DriverHandle, MachineFiles, Notice, Outlet, Ticket};

use crate::bell::Bell;
use crate::connection::{Connection, Gone};
use crate::console::{ConsoleLog, ConsoleServer};
use crate::inherited::Sockets;
use crate::{report, tls};

/// Control connections at one time; later ones are turned away.
const CONNECTIONS_MAX: usize = 32;
/// How long daemons may take for their last frames when the machine has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves until the machine has ended; true if it ended as it should.
pub(crate) fn run(sockets: Sockets, termination: &Bell) -> anyhow::Result<bool> {
    rustix::io::ioctl_fionbio(&sockets.control, true).context("control socket can not be made non-blocking")?;
    let console = ConsoleServer::spawn(sockets.console).context("console can not be started")?;
    let bell = Arc::new(Bell::new().context("no event descriptor")?);
    let (queue, notices) = mpsc::channel();
    let line = Arc::clone(console.line());
    let rung = Arc::clone(&bell);
    let outlet = Outlet::new(queue, Box::new(move || rung.ring()));
    let driver = vmm::spawn(line, outlet).context("state driver can not be started")?;
    let mut this = ControlLoop {
        listener: sockets.control,
        connections: BTreeMap::new(),
        accepted: 0,
        driver,
        console: Some(console),
        run_directory: None,
        status: VmStatus {
            id: None,
            state: VmState::Empty,
            resets: 0,
            first_entry_us: None,
        },
        migration: None,
        departing_tls: None,
        end: None,
        span: None,
    };
    sandbox::confine_this_thread(ThreadKind::Control)?;
    tracing::info!(pid = std::process::id(), "waiting for a machine");
    while this.end.is_none() {
        this.turn(termination, &bell, &notices);
    }
    // The driver is on its way out; it answers what is queued, and hangs up.
    while let Ok(notice) = notices.recv() {
        this.pass_on(notice);
    }
    this.say_farewell();
    Ok(this.end.unwrap_or(false))
}

pub(crate) struct ControlLoop {
    listener: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    /// How many there were: the next one's number.
    accepted: u64,
    pub(crate) driver: DriverHandle,
    /// Until the machine has ended.
    console: Option<ConsoleServer>,
    /// Known once a machine was to be created.
    run_directory: Option<OwnedFd>,
    /// As far as daemons were told.
    status: VmStatus,
    /// What was told last of a migration.
    migration: Option<MigrationNews>,
    /// What streams of the departure are encrypted with, for those that follow the first.
    pub(crate) departing_tls: Option<tls::Client>,
    /// Whether it ended well, once it has.
    end: Option<bool>,
    /// Names the machine in what this thread logs, once it is known.
    span: Option<tracing::span::EnteredSpan>,
}

impl ControlLoop {
    /// Waits for anything to happen, and deals with it.
    fn turn(&mut self, termination: &Bell, bell: &Bell, notices: &mpsc::Receiver<Notice>) {
        let mut fds = vec![
            PollFd::new(termination, PollFlags::IN),
            PollFd::new(bell, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.connections.values().map(|connection| {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, connection.has_unsent());
            PollFd::from_borrowed_fd(connection.socket.as_fd(), wanted)
        }));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return,
            Err(errno) => {
                tracing::error!(%errno, "control loop can not wait for its sockets");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        if is_ready(0) {
            termination.silence();
            let message = "ended by a signal to the machine process (SIGTERM or SIGINT)".to_owned();
            self.driver.send(Action::Terminate { message });
        }
        if is_ready(1) {
            bell.silence();
            while let Ok(notice) = notices.try_recv() {
                self.pass_on(notice);
            }
        }
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for (number, &ready) in numbers.into_iter().zip(ready.iter().skip(3)) {
            if ready {
                self.serve(number);
            }
        }
        if is_ready(2) {
            self.accept();
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.connections.len() >= CONNECTIONS_MAX {
                tracing::warn!(
                    limit = CONNECTIONS_MAX,
                    "control connection turned away: there are too many"
                );
                continue;
            }
            let number = self.accepted;
            self.accepted += 1;
            self.connections.insert(number, Connection::new(socket));
            tracing::debug!(connection = number, "control connection accepted");
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                status: self.status.clone(),
                migration: self.migration.clone(),
            };
            self.send(number, &FromVm::Hello(hello));
        }
    }

    /// Sends to one connection; one that does not take it is closed.
    pub(crate) fn send(&mut self, number: u64, message: &FromVm) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if let Err(gone) = connection.send(message) {
            self.close(number, &gone);
        }
    }

    fn broadcast(&mut self, event: VmEvent) {
        let message = FromVm::Event(event);
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            self.send(number, &message);
        }
    }

    fn close(&mut self, number: u64, gone: &Gone) {
        if matches!(gone, Gone::Closed) {
            tracing::debug!(connection = number, "control connection closed");
        } else {
            let why = chain(gone);
            tracing::warn!(connection = number, why, "control connection given up");
        }
        self.connections.remove(&number);
    }

    /// Sends and receives on one connection.
    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let mut requests = Vec::new();
        let outcome = connection.flush().and_then(|()| connection.receive(&mut requests));
        for request in requests {
            self.handle(number, request);
        }
        if let Err(gone) = outcome {
            self.close(number, &gone);
        }
    }

    fn handle(&mut self, connection: u64, frame: ToVm) {
        let ticket = Ticket {
            connection,
            number: frame.number,
        };
        let at = Instant::now();
        let action = match frame.request {
            VmRequest::Create(create) => return self.create(ticket, *create),
            VmRequest::Status => {
                let done = FromVm::Done {
                    number: frame.number,
                    status: self.status.clone(),
                };
                return self.send(connection, &done);
            }
            VmRequest::DiskReports => VmAction::DiskReports,
            VmRequest::Disk { disk, change } => return self.change_disk(ticket, disk, change),
            VmRequest::Save => return self.save(ticket),
            VmRequest::Start => VmAction::Start,
            VmRequest::Pause => VmAction::Pause,
            VmRequest::Resume => VmAction::Resume,
            VmRequest::PowerButton => VmAction::PowerButton,
            VmRequest::Reset => VmAction::Reset,
            VmRequest::Quit => VmAction::Quit,
            VmRequest::Depart(depart) => return self.depart(ticket, depart),
            VmRequest::Arrive(arrive) => return self.arrive(ticket, *arrive),
            steer @ (VmRequest::DepartTune { .. }
            | VmRequest::DepartCancel
            | VmRequest::DepartLinks { .. }
            | VmRequest::DepartDecided { .. }
            | VmRequest::ArriveDecided { .. }) => return self.steer(ticket, &steer),
        };
        tracing::info!(?action, connection, "asked for");
        self.driver.send(Action::Ask { ticket, action, at });
    }

    fn create(&mut self, ticket: Ticket, create: CreateVm) {
        let fds = self.take_files(ticket, create.fds.len());
        let files = self.begin(&create, fds);
        self.driver.send(Action::Create {
            ticket,
            machine: Box::new(create.machine),
            files,
        });
    }

    /// Files that came with the request that is handled now; fewer if fewer came.
    pub(crate) fn take_files(&mut self, ticket: Ticket, count: usize) -> Vec<OwnedFd> {
        let connection = self.connections.get_mut(&ticket.connection);
        connection
            .map(|connection| connection.take_files(count))
            .unwrap_or_default()
    }

    /// Sorts the files that came along. The first creation decides where log and report go; a second one is refused anyway.
    pub(crate) fn begin(&mut self, create: &CreateVm, fds: Vec<OwnedFd>) -> Result<Box<MachineFiles>, Refusal> {
        tracing::info!(id = %create.machine.id(), name = %create.machine.name(), "asked to become a machine");
        if self.run_directory.is_some() {
            return Err(Refusal {
                kind: RefusalKind::WrongState,
                message: "this process has its machine already".to_owned(),
            });
        }
        let span = tracing::info_span!("machine", id = %create.machine.id(), name = %create.machine.name());
        self.span = Some(span.entered());
        // Found by itself first, so that wrong files can be reported in it.
        let place = create.fds.iter().position(|role| *role == FdRole::RunDirectory);
        let directory = place.filter(|_| fds.len() == create.fds.len());
        self.run_directory = directory.and_then(|place| fds.get(place)?.try_clone().ok());
        self.sort(create, fds).map(Box::new)
    }

    fn save(&mut self, ticket: Ticket) {
        let files = self.take_files(ticket, 1);
        tracing::info!(connection = ticket.connection, "asked to save the machine");
        let directory = files.into_iter().next();
        self.driver.send(Action::Save { ticket, directory });
    }

    fn change_disk(&mut self, ticket: Ticket, disk: Name, change: DiskChange) {
        let count = change.file_count();
        let files = self.take_files(ticket, count);
        tracing::info!(%disk, ?change, connection = ticket.connection, "asked to change a disk");
        self.driver.send(Action::Disk {
            ticket,
            disk,
            change,
            files,
        });
    }

    fn sort(&self, create: &CreateVm, fds: Vec<OwnedFd>) -> Result<MachineFiles, Refusal> {
        let bad_file = |message| Refusal {
            kind: RefusalKind::BadFile,
            message,
        };
        let (files, directories) = vmm::sort(create, fds).map_err(|error| bad_file(error.to_string()))?;
        let log = ConsoleLog::open(directories.log, create.console_log_max_bytes, create.console_log_keep)
            .map_err(|error| bad_file(format!("console.log can not be opened in the log directory: {error}")))?;
        if let Some(console) = &self.console {
            console.log_to(log);
        }
        report::promise(&directories.run, create.machine.id());
        Ok(files)
    }

    /// Tells daemons what the state driver says.
    fn pass_on(&mut self, notice: Notice) {
        match notice {
            Notice::Status(status) => self.status = status,
            Notice::Event(event) => {
                // Figures come late, and a daemon that connects must find what waits for its answer.
                if let VmEvent::Migration(news) = &event
                    && !matches!(news, MigrationNews::Progress(_))
                {
                    self.migration = Some(news.clone());
                }
                self.broadcast(event);
            }
            Notice::Answer { ticket, answer } => {
                let number = ticket.number;
                let message = match answer {
                    Ok(status) => FromVm::Done { number, status },
                    Err(refusal) => {
                        tracing::warn!(kind = ?refusal.kind, message = refusal.message, "request refused");
                        FromVm::Refused { number, refusal }
                    }
                };
                self.send(ticket.connection, &message);
            }
            Notice::Disks { ticket, disks } => {
                let number = ticket.number;
                self.send(ticket.connection, &FromVm::Disks { number, disks });
            }
            Notice::Ended(report) => {
                // The console first: who sees the report finds the log complete.
                if let Some(console) = self.console.take() {
                    console.finish();
                }
                self.leave_report(&report);
                self.end = Some(report.reason.is_clean());
                self.broadcast(VmEvent::Ended { report });
            }
            Notice::Abandoned => self.end = Some(true),
        }
    }

    fn leave_report(&self, report: &control::EndReport) {
        let written = match &self.run_directory {
            Some(directory) => report::write(directory, report).map_err(|error| error.to_string()),
            None => Err("no run directory was passed".to_owned()),
        };
        if let Err(error) = written {
            tracing::error!(error, ?report, "report can not be left in the run directory");
        }
    }

    /// Sends what is unsent, as far as daemons take it.
    fn say_farewell(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        loop {
            self.connections
                .retain(|_, connection| connection.flush().is_ok() && connection.has_unsent());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.connections.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> = self
                .connections
                .values()
                .map(|connection| PollFd::from_borrowed_fd(connection.socket.as_fd(), PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
