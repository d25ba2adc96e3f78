//! A machine that is held at one instant while a snapshot of it is taken: until then nobody else changes it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use api_types::{ErrorCode, VmPhase};
use control::VmRequest;

use super::Task;
use super::requests::Answer;
use crate::failure::Failure;
use crate::machine::lifecycle::{Ask, Effect};
use crate::machine::root::root_file;
use crate::machine::{DiskOrder, Order, Reply};

/// How long a process has to write its memory to the disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The first protocol in which machines can be saved.
const SAVE_PROTOCOL: u32 = 4;

/// What is done with a machine that is held.
pub(in crate::machine) enum HeldStep {
    /// Stop its vCPUs, if they run.
    Pause,
    /// Change a disk.
    Disk(DiskOrder),
    /// Save it into this directory.
    Save(OwnedFd),
    /// Let it go on.
    Resume,
}

impl Order {
    /// Whether it would change a machine that is held. To end one by force is possible always.
    pub(super) const fn disturbs(&self) -> bool {
        match self {
            Self::Steer { .. }
            | Self::SettleArrival { .. }
            | Self::Start { .. }
            | Self::Act { .. }
            | Self::Disk { .. }
            | Self::Edit { .. }
            | Self::Delete { .. } => true,
            Self::Stop { force, .. } => !*force,
            Self::DiskReports { .. }
            | Self::Cancel(_)
            | Self::StandsAlone { .. }
            | Self::Hold { .. }
            | Self::Held { .. }
            | Self::Release => false,
        }
    }
}

impl Task {
    /// Fails if an order is meant for another revision, or disturbs.
    pub(super) async fn check(&mut self, disturbs: bool, revision: Option<u64>) -> Result<(), Failure> {
        if self.held && disturbs {
            let text = format!(
                "a snapshot of machine {} is being taken: ask again when its operation is over",
                self.vm.spec.name
            );
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        match revision {
            Some(wanted) => self.check_revision(wanted).await,
            None => Ok(()),
        }
    }

    /// Answers whether it runs.
    pub(super) fn hold(&mut self) -> Result<bool, Failure> {
        let name = self.vm.spec.name.clone();
        let refused = |text: &str| Err(Failure::new(ErrorCode::WrongState, format!("machine {name} {text}")));
        if self.held {
            return refused("has a snapshot taken already: wait for that");
        }
        let runs = match self.life.phase() {
            VmPhase::Running => true,
            VmPhase::Paused => false,
            phase => {
                let text = format!("is {phase:?}: only one that runs or is paused can be saved");
                return refused(&text);
            }
        };
        if self.linked_process()?.protocol() < SAVE_PROTOCOL {
            return refused("was started by an older version, which can not do that: stop it and start it again");
        }
        self.held = true;
        Ok(runs)
    }

    /// Everybody may change it again.
    pub(super) fn release(&mut self) {
        self.held = false;
        let (_, format) = root_file(&self.context, &self.vm);
        if let Some(root) = &mut self.life.status.root_disk {
            root.format = format;
        }
        self.vm.status.root_disk.clone_from(&self.life.status.root_disk);
    }

    pub(super) async fn held_step(&mut self, step: HeldStep, reply: Reply<()>) {
        let ask = match step {
            HeldStep::Disk(order) => return self.change_disk(order, reply).await,
            HeldStep::Save(directory) => {
                let sent = self.send_files(VmRequest::Save, &[directory]).await;
                return self.await_answer_for(sent, Answer::Done(reply), SAVE_TIMEOUT);
            }
            HeldStep::Pause => Ask::Pause,
            HeldStep::Resume => Ask::Resume,
        };
        let sent = self.life.ask(ask).and_then(|effects| match effects.into_iter().next() {
            Some(Effect::Send(request)) => self.send(request),
            _ => Err(Failure::new(ErrorCode::Internal, "nothing to send")),
        });
        self.await_answer(sent, Answer::Done(reply));
    }
}
