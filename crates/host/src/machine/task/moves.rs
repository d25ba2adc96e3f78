//! What a machine's task does while the machine moves: it carries requests to the process and news from it, and it is the one that
//! writes down that a machine has departed.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, VmPhase};
use control::{MigrationKey, MigrationNews, VmRequest, VmState};
use jiff::Timestamp;

use super::{Answer, Task};
use crate::failure::Failure;
use crate::machine::Reply;
use crate::machine::lifecycle::Ask;
use crate::registry::RegistryError;

/// How long to wait before a decision that could not be written is tried again: the guest stands still meanwhile.
const DECIDE_RETRY: Duration = Duration::from_millis(500);
/// The first protocol with moves.
const MOVE_PROTOCOL: u32 = 5;

/// What is asked of a machine process because of a move.
pub(in crate::machine) struct MoveOrder {
    pub(in crate::machine) request: VmRequest,
    /// The files that belong to it.
    pub(in crate::machine) fds: Vec<OwnedFd>,
}

impl Task {
    /// Carries a request to the process; the answer goes to whoever ordered it.
    pub(super) async fn steer(&mut self, order: MoveOrder, reply: Reply<()>) {
        let may = match &order.request {
            VmRequest::Depart(_) => self.life.ask(Ask::Depart).and_then(|_| self.can_move()),
            _ => Ok(()),
        };
        let sent = match may {
            Ok(()) if order.fds.is_empty() => self.send(order.request),
            Ok(()) => self.send_files(order.request, &order.fds).await,
            Err(failure) => Err(failure),
        };
        self.await_answer(sent, Answer::Done(reply));
    }

    /// Machines outlive the daemon that started them, also one of an older version.
    fn can_move(&mut self) -> Result<(), Failure> {
        if self.linked_process()?.protocol() >= MOVE_PROTOCOL {
            return Ok(());
        }
        let text = "the machine was started by an older version, which can not move it: stop it and start it again";
        Err(Failure::new(ErrorCode::WrongState, text))
    }

    /// The process tells something of a move.
    pub(in crate::machine) async fn moved(&mut self, news: MigrationNews) {
        match news {
            MigrationNews::Decide { key } => self.decide(key).await,
            news => {
                if matches!(news, MigrationNews::Arrived { .. } | MigrationNews::Complete) {
                    self.note_arrival(VmState::Running);
                    self.save().await;
                }
                self.context.moves.told(self.vm.id, news);
            }
        }
    }

    fn note_arrival(&mut self, state: VmState) {
        if self.life.phase() == VmPhase::Arriving {
            self.note(super::Happened::State(state));
        }
        let started_at = &mut self.life.status.started_at;
        *started_at = started_at.or_else(|| Some(Timestamp::now()));
    }

    /// Writes down that the machine has departed, unless it is written that it stays, and tells the process what stands. Whether
    /// anybody follows the move is no matter: what is written holds.
    pub(super) async fn decide(&mut self, key: MigrationKey) {
        self.undecided = None;
        let (vm, known) = (self.vm.id, self.context.moves.followed(self.vm.id) == Some(key));
        let decided = self.context.registry.change(move |change| {
            // A move that no record knows was not begun here, or is forgotten because it came to nothing.
            change.decide(&key, Some(vm), known)
        });
        match decided.await {
            Ok(departed) => {
                self.life.departed |= departed;
                tracing::info!(migration = %key.id, departed, "where the machine is, is decided");
                if let Err(failure) = self.send(VmRequest::DepartDecided { departed }) {
                    // It asks again over the next connection.
                    tracing::warn!(error = %failure, "the machine process was not told what was decided");
                }
            }
            Err::<_, RegistryError>(error) => {
                let error = crate::failure::chain(&error);
                tracing::error!(
                    error,
                    "where a machine is can not be written down; its guest stands still until it is"
                );
                self.undecided = Some((Instant::now() + DECIDE_RETRY, key));
            }
        }
    }

    /// Reads whether the machine has departed; until that is known, nothing is done with it.
    pub(super) async fn read_departure(&mut self) {
        let vm = self.vm.id;
        loop {
            match self
                .context
                .registry
                .change(move |change| change.has_departed(vm))
                .await
            {
                Ok(departed) => {
                    self.life.departed = departed;
                    return;
                }
                Err::<_, RegistryError>(error) => {
                    let error = crate::failure::chain(&error);
                    tracing::error!(
                        error,
                        "it can not be read whether a machine has departed; it is tried again"
                    );
                    tokio::time::sleep(DECIDE_RETRY).await;
                }
            }
        }
    }

    /// The source has decided about a machine that has no process here any more: it lives here, and lost its power; or it never came.
    pub(super) async fn settle_arrival(&mut self, is_ours: bool) -> Result<(), Failure> {
        if self.life.phase() != VmPhase::Arriving {
            let text = format!("machine {} does not arrive any more", self.vm.spec.name);
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        if is_ours {
            if self.process.is_none() {
                let why = "the machine process ended just when the machine had been given away to it; the guest lost power, its disk is kept";
                self.life.enter(VmPhase::Failed, Some("Killed"), Some(why));
                self.save().await;
            }
            return Ok(());
        }
        if let Some(mut process) = self.process.take() {
            process.kill();
            process.exited().await;
        }
        self.link = None;
        self.launching = None;
        self.delete_record().await?;
        self.deleted = true;
        Ok(())
    }
}
