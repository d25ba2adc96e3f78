//! Taking a snapshot of a machine that runs or is paused.
//!
//! ```text
//!   hold ──▶ pause ──▶ freeze the disk ──▶ save memory and devices ──▶ resume ──▶ ready
//! ```
//! Whatever goes wrong on the way, the machine goes on as it was. A daemon that dies leaves a record that is not ready: the next one
//! lets the machine go on and removes what there is.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, EventReason, OperationKind, OperationPhase, Snapshot, SnapshotState, SnapshotWish, Vm};
use control::DiskChange;
use jiff::Timestamp;
use spec::{Name, NameError, OperationId, Problems, SnapshotId};

use super::lost;
use crate::failure::Failure;
use crate::host::Host;
use crate::machine::{self, Held};
use crate::operations::Worker;
use crate::registry::{About, RegistryError, SnapshotRow};
use crate::snapshot_files;
use crate::volume_store::{Meter, check_name};

const REFUSED: &str = "the snapshot can not be taken as it is asked for";
/// What a machine's own disk is called.
const ROOT: &str = "root";
/// How often it is looked how much has been written.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often and how long after each other a machine is told to go on that does not answer.
const TRIES: u32 = 600;
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How long to wait before what could not be written down is written again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);
/// Longest name.
const NAME_MAX: usize = 63;

impl Host {
    /// Begins to take a snapshot of a machine.
    pub async fn create_snapshot(&self, wish: SnapshotWish) -> Result<(Snapshot, OperationId), Failure> {
        let vm = self.vm(&wish.vm).await?;
        let name = wish.name.unwrap_or_else(|| name_for(&vm.spec.name));
        check(&name, &vm)?;
        self.check_space(0).await?;
        let operation = OperationId::random();
        let row = SnapshotRow {
            stands_alone: vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone),
            store: vm.status.root_disk.as_ref().and_then(|root| root.store.clone()),
            ran: false,
            snapshot: new(name, &vm, operation),
        };
        let (written, context) = (row.clone(), Arc::clone(&self.0.context));
        let inserted = self.registry().change(move |change| -> Result<(), Failure> {
            let (id, name) = (written.id(), written.name());
            snapshot_files::mark(&context, id)?;
            change.insert_snapshot(&written).map_err(|error| {
                if error.is_conflict() {
                    let text = format!("there is a snapshot {name:?} already; choose another name, or delete that one");
                    Failure::new(ErrorCode::NameTaken, text)
                } else {
                    error.into()
                }
            })?;
            let text = format!("snapshot {name} of machine {} was begun", written.snapshot.vm);
            change.event(&About::Snapshot(id, name), EventReason::Created, &text)?;
            change.begin_operation(operation, OperationKind::SnapshotCreate, name)?;
            Ok(())
        });
        if let Err(failure) = inserted.await {
            snapshot_files::remove(&self.0.context, row.id());
            return Err(failure);
        }
        let snapshot = row.snapshot.clone();
        self.spawn_snapshot(row, operation);
        Ok((snapshot, operation))
    }

    fn spawn_snapshot(&self, row: SnapshotRow, operation: OperationId) {
        let (meter, watched, cancel) = Meter::new();
        let operations = &self.0.context.operations;
        operations.begin(operation, Worker::Volume(watched, cancel));
        let host = self.clone();
        tokio::spawn(async move {
            let mut row = row;
            let taken = host.take(&mut row, &meter).await;
            host.note_snapshot(row, operation, taken).await;
            host.0.context.operations.end(operation);
        });
    }

    async fn take(&self, row: &mut SnapshotRow, meter: &Meter) -> Result<(), Failure> {
        let id = row.snapshot.vm_id.to_string();
        let (_, machine) = self.machine(&id).await?;
        let held = machine.hold().await?;
        // As it is now that nobody changes it any more.
        let vm = self.vm(&id).await?;
        check(row.name(), &vm)?;
        row.snapshot.spec = vm.spec.clone();
        row.ran = held.runs;
        let noted = row.clone();
        self.registry()
            .change(move |change| change.update_snapshot(&noted))
            .await?;
        let memory_bytes = vm.status.pid.map_or(0, resident_bytes).min(row.snapshot.memory_bytes);
        self.check_space(memory_bytes).await?;
        let began = Instant::now();
        let mut taken = self.take_held(&held, &vm, row, memory_bytes, meter).await;
        if taken.is_err() && !self.runs_out(&taken) && self.check_space(0).await.is_err() {
            // Whatever it said, this is why.
            taken = Err(no_space(row.name()));
        }
        if held.runs {
            meter.begin("resume", None);
            go_on(&held).await;
        }
        tracing::info!(vm = vm.spec.name, stood_still = ?began.elapsed(), ok = taken.is_ok(), "snapshot");
        taken
    }

    fn runs_out(&self, taken: &Result<(), Failure>) -> bool {
        taken.as_ref().is_err_and(|failure| {
            matches!(failure.code, ErrorCode::NoSpace | ErrorCode::Cancelled) || self.0.context.operations.closing()
        })
    }

    async fn take_held(
        &self,
        held: &Held,
        vm: &Vm,
        row: &SnapshotRow,
        memory_bytes: u64,
        meter: &Meter,
    ) -> Result<(), Failure> {
        meter.check()?;
        let (context, id) = (Arc::clone(&self.0.context), row.id());
        let made = tokio::task::spawn_blocking(move || snapshot_files::make(&context, id));
        let directory = made.await.map_err(|_| lost())??;
        if held.runs {
            meter.begin("pause", None);
            held.pause().await?;
        }
        meter.check()?;
        if vm.spec.image.is_some() {
            meter.begin("freeze", None);
            self.freeze_root(held, vm, id).await?;
        }
        let (context, linked) = (Arc::clone(&self.0.context), vm.clone());
        let linked = tokio::task::spawn_blocking(move || snapshot_files::link(&context, id, &linked));
        linked.await.map_err(|_| lost())??;
        meter.check()?;
        self.save(held, directory.into(), row, memory_bytes, meter).await?;
        meter.check()
    }

    /// Has the machine go on in an overlay of its disk.
    async fn freeze_root(&self, held: &Held, vm: &Vm, id: SnapshotId) -> Result<(), Failure> {
        let root: Name = ROOT
            .parse()
            .map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))?;
        let (context, frozen) = (Arc::clone(&self.0.context), vm.clone());
        let begun = tokio::task::spawn_blocking(move || machine::begin_freeze(&context, &frozen, id));
        let overlay = begun.await.map_err(|_| lost())??;
        let change = DiskChange::Snapshot {
            overlay: overlay.layer,
            backing: overlay.backing,
        };
        let asked = held.change_disk(root, change, vec![overlay.file]).await;
        let done = match &asked {
            Ok(()) => true,
            Err(failure) if matches!(failure.code, ErrorCode::MachineFailed | ErrorCode::Timeout) => {
                // It may have done it, or be about to: the overlay tells, when it matters.
                return asked;
            }
            Err(_) => false,
        };
        let (context, vm) = (Arc::clone(&self.0.context), vm.id);
        let ended = tokio::task::spawn_blocking(move || machine::end_freeze(&context, vm, id, done));
        ended.await.map_err(|_| lost())?;
        asked
    }

    async fn save(
        &self,
        held: &Held,
        directory: OwnedFd,
        row: &SnapshotRow,
        memory_bytes: u64,
        meter: &Meter,
    ) -> Result<(), Failure> {
        meter.begin("save", (memory_bytes > 0).then_some(memory_bytes));
        let mut saving = std::pin::pin!(held.save(directory));
        loop {
            tokio::select! {
                saved = &mut saving => return saved,
                () = tokio::time::sleep(LOOK_EVERY) => meter.set(snapshot_files::written_bytes(&self.0.context, row.id())),
            }
        }
    }

    /// Writes down how it ended, again and again until that works.
    async fn note_snapshot(&self, mut row: SnapshotRow, operation: OperationId, taken: Result<(), Failure>) {
        row.snapshot.operation = None;
        let id = row.id();
        if taken.is_ok() {
            row.snapshot.state = SnapshotState::Ready;
        }
        loop {
            let (row, taken) = (row.clone(), taken.clone());
            let noted = self
                .registry()
                .change(move |change| -> Result<(), RegistryError> {
                    let about = About::Snapshot(row.id(), row.name());
                    match &taken {
                        Ok(()) => {
                            change.update_snapshot(&row)?;
                            let text = format!("snapshot {} is ready", row.name());
                            change.event(&about, EventReason::PhaseChanged, &text)?;
                            change.end_operation(operation, OperationPhase::Succeeded, Ok(Some(row.name())))
                        }
                        Err(failure) => {
                            change.delete_snapshot(row.id())?;
                            let text = format!("snapshot {} was not made: {failure}", row.name());
                            change.event(&about, EventReason::Deleted, &text)?;
                            let phase = match failure.code {
                                ErrorCode::Cancelled => OperationPhase::Cancelled,
                                _ => OperationPhase::Failed,
                            };
                            change.end_operation(operation, phase, Err(failure))
                        }
                    }
                })
                .await;
            let Err(error) = noted else { break };
            tracing::error!(%error, "the end of a snapshot can not be noted; it is tried again");
            if self.0.context.operations.closing() {
                return;
            }
            tokio::time::sleep(NOTE_AGAIN).await;
        }
        let (context, kept) = (Arc::clone(&self.0.context), taken.is_ok());
        let settled = tokio::task::spawn_blocking(move || {
            if kept {
                snapshot_files::unmark(&context, id);
            } else {
                snapshot_files::remove(&context, id);
            }
        });
        if settled.await.is_err() {
            tracing::error!(snapshot = %id, "files of a snapshot remain until the daemon starts next");
        }
    }
}

/// Lets a machine go on that was paused, unless it has ended.
async fn go_on(held: &Held) {
    for _ in 0..TRIES {
        match held.resume().await {
            Ok(()) => return,
            // It is not paused.
            Err(failure) if failure.code == ErrorCode::WrongState => return,
            Err(failure) => tracing::warn!(error = %failure, "a machine is told again to go on"),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    tracing::error!("a machine that was paused for a snapshot stands still: karat resume lets it go on");
}

/// The machine's, the date and the time.
fn name_for(vm: &str) -> String {
    let time = Timestamp::now().strftime("-%Y%m%d-%H%M%S").to_string();
    let room = NAME_MAX.saturating_sub(time.len());
    format!("{}{time}", vm.get(..room).unwrap_or(vm))
}

/// Fails if the name, or the machine, can not be taken.
fn check(name: &str, vm: &Vm) -> Result<(), Failure> {
    let mut problems = Problems::new();
    problems.take::<Name, _>("name", name.parse());
    check_name::<SnapshotId>(name, &mut problems);
    for (index, disk) in vm.spec.disks.iter().enumerate() {
        if !disk.read_only && !disk.cdrom {
            problems.add(
                "vm",
                format_args!(
                    "machine {} writes to disk {}, which is not its root disk: only disks that are read beside that one can be part of \
                     a snapshot; detach it first",
                    vm.spec.name,
                    disk.name.clone().unwrap_or_else(|| format!("disk{}", index + 1))
                ),
            );
        }
    }
    problems
        .into_result(())
        .map_err(|problems| Failure::refused(REFUSED, &problems))
}

fn new(name: String, vm: &Vm, operation: OperationId) -> Snapshot {
    let stands_alone = vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone);
    Snapshot {
        id: SnapshotId::random(),
        name,
        vm: vm.spec.name.clone(),
        vm_id: vm.id,
        spec: vm.spec.clone(),
        image_digest: vm.image_digest.clone().filter(|_| !stands_alone),
        state: SnapshotState::Creating,
        memory_bytes: vm.spec.memory.bytes(),
        usage_bytes: 0,
        operation: Some(operation),
        created_at: Timestamp::now(),
        revision: 1,
    }
}

/// Memory that a process has, bytes (`VmRSS` of `/proc/PID/status`, proc(5)); 0 if that can not be read.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn no_space(name: &str) -> Failure {
    let text = format!("there is no room for snapshot {name}: remove machines, snapshots or images, and try again");
    Failure::new(ErrorCode::NoSpace, text)
}
