//! From a record to a running machine: files, process, `Create`, `Start`.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, Vm};
use command_fds::{CommandFdExt, FdMapping};
use control::{CONSOLE_LISTENER_FD, CONTROL_LISTENER_FD, CreateVm, Refusal, RefusalKind, VmRequest, VmStatus};
use spec::{MachineSpec, VmPlan};
use tokio_util::sync::CancellationToken;

use super::boot::boot_parts;
use super::disks::Locking;
use super::files::{self, Handed};
use super::link::{Link, LinkError};
use super::process::{self, Process};
use super::resumption;
use super::root::settle_root;
use super::run_dir::{Listeners, RunDir};
use super::verified::verified;
use crate::config::HostConfig;
use crate::context::Context;
use crate::failure::Failure;

/// How long a process has to build its machine: populating much memory ahead takes its time.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the first guest instruction is waited for, to state when it was; the machine runs either way.
const FIRST_ENTRY_TIMEOUT: Duration = Duration::from_secs(1);
/// Name of the environment variable with the log filter (crate `telemetry`, which only programs link).
const LOG_FILTER: &str = "KARAT_LOG";
/// How long a process that broke off has to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// A machine that runs.
pub(crate) struct Launched {
    pub(crate) process: Process,
    pub(crate) link: Link,
    pub(crate) status: VmStatus,
    /// Microseconds from the request to the first guest instruction, if it was seen.
    pub(crate) start_to_guest_us: Option<u64>,
}

/// Why a process did not become a machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("the run directory {path:?} can not be prepared")]
    RunDir {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} can not be run; set vmm_path to the karat-vmm program")]
    Spawn {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no connection to the new machine process")]
    Link(#[source] LinkError),
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("the saved memory of the machine, {path:?}, can not be put away")]
    Saved {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the machine process did not build the machine within {} s", BUILD_TIMEOUT.as_secs())]
    BuildTimeout,
    #[error("{0}")]
    Ended(String),
}

impl LaunchError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::BadKernel => ErrorCode::BadKernel,
                RefusalKind::HostLacks => ErrorCode::HostLacks,
                RefusalKind::BadFile => ErrorCode::InvalidSpec,
                RefusalKind::NoSpace => ErrorCode::NoSpace,
                RefusalKind::WrongState | RefusalKind::NoSuchDisk | RefusalKind::Failed => ErrorCode::MachineFailed,
            },
            Self::BuildTimeout => ErrorCode::Timeout,
            Self::RunDir { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::NoSpace,
            _ => ErrorCode::MachineFailed,
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::of(error.code(), &error)
    }
}

/// What is handed to a new process.
pub(super) struct Parts {
    pub(super) machine: MachineSpec,
    pub(super) files: Handed,
}

impl Parts {
    /// The machine, as its process is told.
    pub(super) fn create(&self, context: &Context) -> CreateVm {
        CreateVm {
            machine: self.machine.clone(),
            chains: self.files.chains.clone(),
            fds: self.files.fds.iter().map(|(role, _)| *role).collect(),
            console_log_max_bytes: context.config.console_log_max_bytes,
            console_log_keep: context.config.console_log_keep,
        }
    }
}

/// Starts the machine. When this fails or is given up, no process and no run directory is left.
pub(crate) async fn launch(
    context: Arc<Context>,
    vm: Vm,
    asked_at: Instant,
    give_up: CancellationToken,
) -> Result<Launched, Failure> {
    let run = RunDir::new(&context.config.run_dir, vm.id);
    let result = launch_in(&context, vm, &run, asked_at, &give_up).await;
    if result.is_err()
        && let Err(error) = run.remove()
    {
        tracing::warn!(path = %run.path().display(), %error, "run directory can not be removed");
    }
    result
}

async fn launch_in(
    context: &Arc<Context>,
    vm: Vm,
    run: &RunDir,
    asked_at: Instant,
    give_up: &CancellationToken,
) -> Result<Launched, Failure> {
    verified(context, &vm, give_up).await?;
    let (parts, mut process) = {
        let (context, run) = (Arc::clone(context), run.clone());
        tokio::task::spawn_blocking(move || prepare(&context, &vm, &run, Locking::Now))
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the launch was lost"))??
    };
    let outcome = tokio::select! {
        biased;
        () = give_up.cancelled() => None,
        built = introduce(context, run, &parts, asked_at) => Some(built),
    };
    let error = match outcome {
        Some(Ok((link, status, start_to_guest_us))) => {
            return Ok(Launched {
                process,
                link,
                status,
                start_to_guest_us,
            });
        }
        Some(Err(error)) => error,
        None => {
            process.kill();
            process.exited().await;
            return Err(Failure::new(ErrorCode::Cancelled, "the start was given up on request"));
        }
    };
    Err(broke_off(process, run, error).await)
}

/// Sees to the end of a process that became no machine, and tells why it did not. It ends by itself after a refusal, and has ended
/// if the connection broke: then how it did says more.
pub(super) async fn broke_off(mut process: Process, run: &RunDir, error: LaunchError) -> Failure {
    let by_itself = tokio::time::timeout(EXIT_TIMEOUT, process.exited()).await;
    if by_itself.is_err() {
        process.kill();
        process.exited().await;
    }
    match (error, by_itself) {
        (LaunchError::Link(_), Ok(exit)) => LaunchError::Ended(process::end(exit, run.report()).message).into(),
        (error, _) => error.into(),
    }
}

/// Opens everything and starts the process. Blocks.
pub(super) fn prepare(context: &Context, vm: &Vm, run: &RunDir, locking: Locking) -> Result<(Parts, Process), Failure> {
    let refused = |problems| Failure::refused("the machine does not fit this host any more", &problems);
    let plan = VmPlan::new(&vm.spec, &context.limits).map_err(refused)?;
    // What is wrong with it is told when its files are opened.
    let cmdline = boot_parts(context, vm).ok().and_then(|parts| parts.cmdline);
    let machine = plan.machine(vm.id, cmdline.as_deref()).map_err(refused)?;
    let prepared = run.prepare().map_err(|source| LaunchError::RunDir {
        path: run.path().to_owned(),
        source,
    });
    let listeners = prepared?;
    settle_root(context, vm.id)?;
    let files = files::open(context, vm, &plan, &machine, run.path(), locking)?;
    let process = spawn(&context.config, &vm.spec.name, listeners).map_err(|source| LaunchError::Spawn {
        path: context.config.vmm_path.clone(),
        source,
    })?;
    Ok((Parts { machine, files }, process))
}

/// The process gets its sockets, standard error for its log, and nothing else of ours. It is in a process group of its own,
/// so that no signal meant for the daemon's terminal reaches it.
fn spawn(config: &HostConfig, name: &str, listeners: Listeners) -> io::Result<Process> {
    let mut command = Command::new(&config.vmm_path);
    command
        .arg0(format!("karat-vmm:{name}"))
        .arg(format!("--seccomp={}", config.seccomp))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    // The log filter of the daemon is the machine's too.
    command.envs(std::env::var_os(LOG_FILTER).map(|filter| (LOG_FILTER, filter)));
    let mappings = [
        (listeners.control, CONTROL_LISTENER_FD),
        (listeners.console, CONSOLE_LISTENER_FD),
    ];
    command
        .fd_mappings(
            mappings
                .map(|(listener, child_fd)| FdMapping {
                    parent_fd: listener.into(),
                    child_fd,
                })
                .into(),
        )
        .map_err(io::Error::other)?;
    Process::spawned(command.spawn()?)
}

/// Tells the process what machine it is, and lets it run.
async fn introduce(
    context: &Context,
    run: &RunDir,
    parts: &Parts,
    asked_at: Instant,
) -> Result<(Link, VmStatus, Option<u64>), LaunchError> {
    let (mut link, _) = Link::open(&run.control()).await.map_err(LaunchError::Link)?;
    let create = VmRequest::Create(Box::new(parts.create(context)));
    let fds: Vec<_> = parts.files.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    let number = link.send_files(create, &fds).await.map_err(LaunchError::Link)?;
    built(&mut link, number).await?;
    let before_us = u64::try_from(asked_at.elapsed().as_micros()).unwrap_or(u64::MAX);
    let first = if parts.files.is_saved() {
        let id = parts.machine.id();
        // From here on it is not what was saved any more, whatever becomes of it.
        let put_away = resumption::used_up(context, id).await;
        let path = resumption::directory(context, id);
        put_away.map_err(|source| LaunchError::Saved { path, source })?;
        VmRequest::Resume
    } else {
        VmRequest::Start
    };
    let status = ask(&mut link, first).await?;
    let status = await_first_entry(&mut link, status).await?;
    let start_to_guest_us = status.first_entry_us.map(|us| us.saturating_add(before_us));
    Ok((link, status, start_to_guest_us))
}

/// Waits until the machine stands.
pub(super) async fn built(link: &mut Link, number: u64) -> Result<VmStatus, LaunchError> {
    let built = tokio::time::timeout(BUILD_TIMEOUT, done(link, number)).await;
    built.map_err(|_| LaunchError::BuildTimeout)?
}

async fn await_first_entry(link: &mut Link, mut status: VmStatus) -> Result<VmStatus, LaunchError> {
    let until = Instant::now() + FIRST_ENTRY_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    while status.first_entry_us.is_none() && Instant::now() < until {
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2);
        status = ask(link, VmRequest::Status).await?;
    }
    Ok(status)
}

async fn ask(link: &mut Link, request: VmRequest) -> Result<VmStatus, LaunchError> {
    let number = link.send(request).map_err(LaunchError::Link)?;
    done(link, number).await
}

async fn done(link: &mut Link, number: u64) -> Result<VmStatus, LaunchError> {
    let answer = link.answer(number).await.map_err(LaunchError::Link)?;
    answer.map_err(LaunchError::Refused)
}
