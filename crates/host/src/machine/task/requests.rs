//! Requests to the machine process, and what becomes of whoever waits for an answer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use api_types::ErrorCode;
use control::{DiskChange, DiskReport, Refusal, RefusalKind, VmRequest};

use super::Task;
use crate::failure::Failure;
use crate::machine::lifecycle::Ask;
use crate::machine::link::{Link, LinkError};
use crate::machine::{DiskOrder, Reply};

/// How long a process has to carry out a pause, resume or reset.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process has to take in a request with files.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The first protocol in which snapshots, streams and copies can be told apart after either side died.
const LIVE_PROTOCOL: u32 = 3;

/// Somebody who waits for the process to answer.
pub(super) struct Waiting {
    reply: Answer,
    pub(super) until: Instant,
}

/// Where an answer goes. Whoever asked may have gone.
pub(super) enum Answer {
    Done(Reply<()>),
    Disks(Reply<Vec<DiskReport>>),
}

impl Answer {
    pub(super) fn fail(self, failure: Failure) {
        match self {
            Self::Done(reply) => drop(reply.send(Err(failure))),
            Self::Disks(reply) => drop(reply.send(Err(failure))),
        }
    }
}

impl Task {
    pub(super) fn ask_for_disks(&mut self, reply: Reply<Vec<DiskReport>>) {
        let sent = self.life.ask(Ask::ChangeDisk);
        let sent = sent.and_then(|_| self.send(VmRequest::DiskReports));
        self.await_answer(sent, Answer::Disks(reply));
    }

    pub(super) async fn change_disk(&mut self, order: DiskOrder, reply: Reply<()>) {
        let request = VmRequest::Disk {
            disk: order.disk,
            change: order.change,
        };
        let may = self.life.ask(Ask::ChangeDisk).and_then(|_| self.understands(&request));
        let sent = match may {
            Ok(()) if order.fds.is_empty() => self.send(request),
            Ok(()) => self.send_files(request, &order.fds).await,
            Err(failure) => Err(failure),
        };
        self.await_answer(sent, Answer::Done(reply));
    }

    pub(super) fn await_answer(&mut self, sent: Result<u64, Failure>, reply: Answer) {
        self.await_answer_for(sent, reply, ANSWER_TIMEOUT);
    }

    pub(super) fn await_answer_for(&mut self, sent: Result<u64, Failure>, reply: Answer, timeout: Duration) {
        match sent {
            Ok(number) => {
                let until = Instant::now() + timeout;
                self.waiting.insert(number, Waiting { reply, until });
            }
            Err(failure) => reply.fail(failure),
        }
    }

    /// Machines outlive the daemon that started them, also one of an older version.
    fn understands(&mut self, request: &VmRequest) -> Result<(), Failure> {
        let is_live = matches!(
            request,
            VmRequest::Disk {
                change: DiskChange::Snapshot { .. } | DiskChange::Stream | DiskChange::Mirror { .. },
                ..
            }
        );
        if is_live && self.linked_process()?.protocol() < LIVE_PROTOCOL {
            let text = "the machine was started by an older version, which can not do that: stop it and start it again";
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        Ok(())
    }

    pub(super) fn send(&mut self, request: VmRequest) -> Result<u64, Failure> {
        self.linked_process()?
            .send(request)
            .map_err(|error| Failure::of(ErrorCode::MachineFailed, &error))
    }

    /// A process that does not read what is sent to it is not waited for.
    pub(super) async fn send_files(&mut self, request: VmRequest, fds: &[OwnedFd]) -> Result<u64, Failure> {
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

    pub(super) fn linked_process(&mut self) -> Result<&mut Link, Failure> {
        self.link.as_mut().ok_or_else(|| {
            Failure::new(
                ErrorCode::MachineFailed,
                "the machine process does not answer at the moment; try again, or stop it with force",
            )
        })
    }

    /// The process answered; with its disks, if that was asked for.
    pub(super) fn answered(&mut self, number: u64, answer: Result<Option<Vec<DiskReport>>, Refusal>) {
        let waiting = self.waiting.remove(&number).map(|waiting| waiting.reply);
        // Whoever asked may have gone, here and below.
        match (waiting, answer) {
            (Some(Answer::Done(reply)), Ok(None)) => drop(reply.send(Ok(()))),
            (Some(Answer::Disks(reply)), Ok(Some(disks))) => drop(reply.send(Ok(disks))),
            (Some(reply), Err(refusal)) => {
                let code = match refusal.kind {
                    RefusalKind::NoSuchDisk => ErrorCode::NotFound,
                    RefusalKind::NoSpace => ErrorCode::NoSpace,
                    _ => ErrorCode::WrongState,
                };
                reply.fail(Failure::new(code, refusal.message));
            }
            (None, Err(refusal)) => tracing::warn!(why = refusal.message, "machine process refused a request"),
            (None, Ok(None)) => {}
            (_, Ok(_)) => tracing::warn!(number, "the machine process answers what was not asked"),
        }
    }

    /// Whether somebody asked for what changes the machine, and wants to see it in the record then.
    pub(in crate::machine) fn somebody_waits(&self) -> bool {
        let mut answers = self.waiting.values().map(|waiting| &waiting.reply);
        answers.any(|reply| matches!(reply, Answer::Done(_)))
    }

    /// Nobody will answer any more what was asked over this connection.
    pub(super) fn unanswered(&mut self, error: &LinkError) {
        for (_, waiting) in self.waiting.drain() {
            waiting.reply.fail(Failure::of(ErrorCode::MachineFailed, error));
        }
    }

    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let late = self.waiting.extract_if(|_, waiting| waiting.until <= now);
        for (_, waiting) in late {
            let text = "the machine process did not answer in time";
            waiting.reply.fail(Failure::new(ErrorCode::Timeout, text));
        }
    }
}
