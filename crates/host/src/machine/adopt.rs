//! What an earlier daemon left: processes that run, reports of those that ended meanwhile, directories of nobody.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api_types::{ErrorCode, VmPhase};
use control::{Hello, VmRequest, VmState};
use rustix::io::Errno;
use spec::VmId;

use super::lifecycle::Happened;
use super::link::{Link, LinkError};
use super::process::{Exit, Process};
use super::resumption;
use super::run_dir::{self, RunDir};
use super::task::Task;
use crate::context::Context;
use crate::failure::{Failure, chain};

/// How long a process has to answer or to end while it is looked at.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// What the kernel calls the machine program (`/proc/PID/comm`, at most 15 characters).
const PROGRAM_NAME: &str = "karat-vmm";

impl Task {
    /// Finds out what became of the machine while no daemon looked.
    pub(super) async fn adopt(&mut self) {
        let idle = match self.life.phase() {
            VmPhase::Stopped | VmPhase::Failed => true,
            // Its process serves memory for a while.
            VmPhase::Departed => self.life.status.pid.is_none(),
            _ => false,
        };
        if idle && !self.run.path().exists() {
            self.context.moves.silent(self.vm.id);
            return;
        }
        loop {
            let met = match Link::open(&self.run.control()).await {
                Ok((link, hello)) => self.meet(link, hello).await,
                Err(LinkError::NobodyListens(_)) => {
                    self.is_gone(idle);
                    Ok(())
                }
                Err(error) => self.is_silent(&error),
            };
            let Err(error) = met else { break };
            // Nothing is known of the machine, so nothing is said of it.
            tracing::error!(%error, "a machine can not be looked for; it is tried again");
            tokio::time::sleep(LOOK_TIMEOUT).await;
        }
        self.save().await;
    }

    /// Fails when this process can not look.
    async fn meet(&mut self, mut link: Link, hello: Hello) -> io::Result<()> {
        let Some(process) = found(hello.pid)? else {
            self.is_gone(false);
            return Ok(());
        };
        // An answer after the pidfd was opened proves that the pidfd is of the process that answers.
        if !still_there(&mut link).await {
            if is_machine_process(hello.pid)? {
                self.watch(process, &LinkError::Silent);
            } else {
                self.is_gone(false);
            }
            return Ok(());
        }
        let told = hello.migration;
        match hello.status.state {
            VmState::Paused if resumption::is_due(&self.context, self.vm.id) => {
                tracing::warn!(
                    pid = hello.pid,
                    "machine process that did not go on from its snapshot yet is ended"
                );
                end(&mut link, process).await;
                self.start_was_cut_off();
            }
            VmState::Running | VmState::Paused | VmState::Departed => {
                tracing::info!(pid = hello.pid, "running machine found again");
                self.life.enter(VmPhase::Running, None, None);
                self.life.status.pid = Some(hello.pid);
                self.process = Some(process);
                self.link = Some(link);
                self.apply_status(&hello.status);
                self.tell_adopted(hello.pid).await;
            }
            VmState::Arriving if self.life.phase() == VmPhase::Arriving => {
                tracing::info!(
                    pid = hello.pid,
                    "the process of a machine that comes from elsewhere was found again"
                );
                self.life.status.pid = Some(hello.pid);
                self.process = Some(process);
                self.link = Some(link);
            }
            VmState::Empty | VmState::Created | VmState::Arriving => {
                tracing::warn!(pid = hello.pid, "machine process that was never started is ended");
                end(&mut link, process).await;
                self.start_was_cut_off();
            }
            VmState::Ended => {
                end(&mut link, process).await;
                self.exited(Exit::Unknown);
            }
        }
        if let Some(news) = told {
            self.moved(news).await;
        }
        Ok(())
    }

    /// Nobody listens on its socket, so there is no process.
    fn is_gone(&mut self, idle: bool) {
        if idle {
            self.context.moves.silent(self.vm.id);
            if let Err(error) = self.run.remove() {
                tracing::warn!(path = %self.run.path().display(), %error, "run directory can not be removed");
            }
        } else if self.life.phase() == VmPhase::Starting && self.run.report().is_none() {
            self.start_was_cut_off();
        } else {
            self.exited(Exit::Unknown);
        }
    }

    fn start_was_cut_off(&mut self) {
        let text = "the daemon was restarted while the machine was being started; start it again";
        let failure = Failure::new(ErrorCode::MachineFailed, text);
        let effects = self.life.happened(Happened::LaunchFailed(failure));
        debug_assert!(effects.is_empty(), "nobody waits after a restart");
        if let Err(error) = self.run.remove() {
            tracing::warn!(path = %self.run.path().display(), %error, "run directory can not be removed");
        }
    }

    /// There is a process, but it does not speak to us. Fails when this process can not look.
    fn is_silent(&mut self, error: &LinkError) -> io::Result<()> {
        let process = match self.life.status.pid {
            Some(pid) if is_machine_process(pid)? => found(pid)?,
            _ => None,
        };
        match process {
            Some(process) => self.watch(process, error),
            None => self.is_gone(false),
        }
        Ok(())
    }

    /// The process is watched, and the connection tried again and again.
    fn watch(&mut self, process: Process, error: &LinkError) {
        let pid = process.pid();
        tracing::error!(pid, error = chain(error), "running machine does not answer");
        self.life.status.message = Some(format!("the machine process does not answer: {}", chain(error)));
        self.life.status.pid = Some(pid);
        self.process = Some(process);
    }
}

/// The process with this id, if there is one.
fn found(pid: u32) -> io::Result<Option<Process>> {
    match Process::found(pid) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        // No number of a process.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

async fn still_there(link: &mut Link) -> bool {
    let Ok(number) = link.send(VmRequest::Status) else {
        return false;
    };
    matches!(tokio::time::timeout(LOOK_TIMEOUT, link.answer(number)).await, Ok(Ok(_)))
}

async fn end(link: &mut Link, mut process: Process) {
    let asked = link.send(VmRequest::Quit).is_ok();
    if !asked || tokio::time::timeout(LOOK_TIMEOUT, process.exited()).await.is_err() {
        process.kill();
        process.exited().await;
    }
}

fn is_machine_process(pid: u32) -> io::Result<bool> {
    match std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")) {
        Ok(name) => Ok(name.trim_end() == PROGRAM_NAME),
        // It ended before, or while it was read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Ids of the machines that have a run directory.
pub(crate) fn run_dirs(context: &Context) -> Vec<VmId> {
    run_dir::present(&context.config.run_dir)
}

/// Looks after the processes and run directories of machines that have no record. Those of `cut_off`, whose making or removal
/// was cut off, are ended. Any other that runs is somebody's guest whose record was lost, and is left alone.
pub(crate) async fn clear_strays(context: Arc<Context>, strays: Vec<VmId>, cut_off: Vec<VmId>) {
    for id in strays {
        let run = RunDir::new(&context.config.run_dir, id);
        match Link::open(&run.control()).await {
            Err(LinkError::NobodyListens(_)) => {}
            Ok((mut link, hello)) if cut_off.contains(&id) => {
                if let Ok(process) = Process::found(hello.pid)
                    && still_there(&mut link).await
                {
                    tracing::warn!(%id, pid = hello.pid, "process of a machine that was being removed is ended");
                    end(&mut link, process).await;
                }
            }
            found => {
                let pid = found.ok().map(|(_, hello)| hello.pid);
                tracing::warn!(
                    %id, pid,
                    "a machine that no record knows runs and is left alone: put karat.db back that knows it, or shut its guest down"
                );
                continue;
            }
        }
        match run.remove() {
            Ok(()) => tracing::info!(%id, "run directory of an unknown machine removed"),
            Err(error) => tracing::warn!(%id, %error, "run directory of an unknown machine can not be removed"),
        }
    }
}
