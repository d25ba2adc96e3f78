//! A machine that comes from another host: its process is built without a state, and waits for one. And what is looked at
//! before, on both hosts.

use std::fs::Metadata;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use api_types::{DiskWay, ErrorCode, MovingDisk, Vm};
use control::{ArriveVm, FdRole, LinkCredentials, MigrationKey, VmRequest, VmStatus};
use spec::{DiskSource, Problems, VmPlan};
use tokio::sync::oneshot;

pub(crate) use super::disks::LaterLock;
use super::disks::{self, Locking};
use super::files;
use super::launch::{LaunchError, Launched, Parts, broke_off, built, prepare};
use super::link::Link;
use super::run_dir::RunDir;
use crate::context::Context;
use crate::failure::{Failure, chain};

/// Why a machine with a disk made from an image does not move.
pub(crate) const ROOT_STAYS: &str = "its root disk is its host's alone, and disks are not copied along yet: only machines on shared storage (disks by path) move";

/// How a machine is received.
pub(crate) struct Arrival {
    /// Which attempt.
    pub(crate) key: MigrationKey,
    /// Over TLS with these.
    pub(crate) credentials: Option<LinkCredentials>,
    /// Where the source connects.
    pub(crate) listener: OwnedFd,
    /// How long it may be silent.
    pub(crate) patience_ms: u64,
}

/// Whether a process waits for the machine, and what is still to be locked when that is there.
pub(crate) type Received = Result<Vec<LaterLock>, Failure>;

/// Starts the process, and tells `reply`. When this fails, no process and no run directory is left.
pub(super) async fn receive(
    context: Arc<Context>,
    vm: Vm,
    arrival: Arrival,
    reply: oneshot::Sender<Received>,
) -> Result<Launched, Failure> {
    let run = RunDir::new(&context.config.run_dir, vm.id);
    match receive_in(&context, vm, &run, arrival).await {
        Ok((launched, later)) => {
            let _ = reply.send(Ok(later)); // Whoever asked may have gone.
            Ok(launched)
        }
        Err(failure) => {
            if let Err(error) = run.remove() {
                tracing::warn!(path = %run.path().display(), %error, "run directory can not be removed");
            }
            let _ = reply.send(Err(failure.clone())); // As above.
            Err(failure)
        }
    }
}

async fn receive_in(
    context: &Arc<Context>,
    vm: Vm,
    run: &RunDir,
    arrival: Arrival,
) -> Result<(Launched, Vec<LaterLock>), Failure> {
    let (mut parts, process) = {
        let (context, run) = (Arc::clone(context), run.clone());
        tokio::task::spawn_blocking(move || prepare(&context, &vm, &run, Locking::Later))
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))??
    };
    let later = std::mem::take(&mut parts.files.later);
    parts.files.fds.push((FdRole::MigrationListener, arrival.listener));
    let told = introduce(
        context,
        run,
        &parts,
        arrival.key,
        arrival.credentials,
        arrival.patience_ms,
    )
    .await;
    match told {
        Ok((link, status)) => {
            let launched = Launched {
                process,
                link,
                status,
                start_to_guest_us: None,
            };
            Ok((launched, later))
        }
        Err(error) => Err(broke_off(process, run, error).await),
    }
}

async fn introduce(
    context: &Context,
    run: &RunDir,
    parts: &Parts,
    key: MigrationKey,
    credentials: Option<LinkCredentials>,
    patience_ms: u64,
) -> Result<(Link, VmStatus), LaunchError> {
    let (mut link, _) = Link::open(&run.control()).await.map_err(LaunchError::Link)?;
    let arrive = VmRequest::Arrive(Box::new(ArriveVm {
        create: parts.create(context),
        key,
        credentials,
        patience_ms,
    }));
    let fds: Vec<_> = parts.files.fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    let number = link.send_files(arrive, &fds).await.map_err(LaunchError::Link)?;
    let status = built(&mut link, number).await?;
    Ok((link, status))
}

/// What of a machine's files and interfaces is not here, all of it. Blocks.
pub(crate) fn check(context: &Context, plan: &VmPlan, moving: &[MovingDisk]) -> Problems {
    let mut problems = match files::probe(context, plan) {
        Ok(()) => Problems::new(),
        Err(problems) => problems,
    };
    if plan.image.is_some() {
        problems.add("image", ROOT_STAYS);
    }
    for (index, net) in plan.nets.iter().enumerate() {
        if !files::interface_exists(&net.tap) {
            let text = format!("there is no interface {}; make it on the target", net.tap);
            problems.add(format!("networks[{index}].tap"), text);
        }
    }
    for disk in &plan.disks {
        let name = disk.disk.name.to_string();
        let moving = moving.iter().find(|moving| moving.name == name);
        let field = format!("disks[{}]", disk.index);
        let (DiskSource::Path { path, .. }, Some(moving)) = (&disk.source, moving) else {
            problems.add(field, "it is not told how it comes; only disks by path do");
            continue;
        };
        if moving.how != DiskWay::Shared {
            problems.add(
                field,
                "disks by path do not come along; put it on storage that both hosts have",
            );
            continue;
        }
        // What can not be opened was told above.
        let Ok(resolved) = disks::resolve(context, disk) else {
            continue;
        };
        let Some(top) = resolved.into_layers().into_iter().next() else {
            continue;
        };
        match top.file.metadata() {
            Ok(here) if born_ns(&here).is_none() => problems.add(
                field,
                format_args!(
                    "the file system of {} does not tell when a file was made, so it can not be seen whether it is the source's",
                    path.display()
                ),
            ),
            Ok(here) if Some(here.ino()) == moving.inode && born_ns(&here) == moving.born_ns => {}
            Ok(_) => problems.add(
                field,
                format_args!(
                    "{} is another file here than at the source; put it on storage that both hosts have",
                    path.display()
                ),
            ),
            Err(error) => problems.add(field, chain(&error)),
        }
    }
    problems
}

/// When a file was made, as its file system tells (`stx_btime` of statx(2)).
fn born_ns(file: &Metadata) -> Option<u64> {
    let since = file.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// What becomes of each disk of a machine that leaves, or why it can not. Blocks.
pub(crate) fn leaving(context: &Context, plan: &VmPlan) -> Result<Vec<MovingDisk>, Problems> {
    let (mut problems, mut moving) = (Problems::new(), Vec::new());
    if plan.image.is_some() {
        problems.add("image", ROOT_STAYS);
    }
    for disk in &plan.disks {
        let field = format!("disks[{}]", disk.index);
        if let DiskSource::Volume(volume) = &disk.source {
            let text = format!("volume {volume} is this host's alone; only disks by path on shared storage move along");
            problems.add(field, text);
            continue;
        }
        let resolved = disks::resolve(context, disk);
        let told = resolved.map_err(|error| chain(&error)).and_then(|resolved| {
            let size_bytes = disk_image::virtual_size(&resolved).map_err(|error| chain(&error))?;
            let top = resolved.into_layers().into_iter().next();
            let there = top.and_then(|top| top.file.metadata().ok());
            Ok(MovingDisk {
                name: disk.disk.name.to_string(),
                how: DiskWay::Shared,
                size_bytes,
                inode: there.as_ref().map(MetadataExt::ino),
                born_ns: there.as_ref().and_then(born_ns),
            })
        });
        match told {
            Ok(disk) => moving.push(disk),
            Err(text) => problems.add(field, text),
        }
    }
    problems.into_result(moving)
}
