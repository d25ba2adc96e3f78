//! Having a machine process work on a volume, and following that to its end.
//!
//! What is to be done is written down before anything of it is asked of the process, and what it came to is written down in one
//! transaction with the end of the operation. In between either side may die at any instant: the process and the files tell the
//! rest, see [`crate::volume_store`]. The daemon does not ask twice: where another one had begun, this one only follows.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_types::ErrorCode;
use control::{DiskChange, DiskJob, DiskJobState, DiskLayer, DiskReport};
use spec::{DiskFormat, Name, NameError};

use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::host::Host;
use crate::machine::Machine;
use crate::registry::{Holder, RegistryError, Task, VolumeRecord};
use crate::volume_store::{Files, Meter, NewFile, Outcome, cancelled, empty_layer, new_layer, new_part, settled};

/// How often the process is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often it must have known of nothing before that is believed: a request of the daemon before may be on its way.
const UNKNOWN_MAX: u32 = 10;
/// How long to wait before what could not be looked at is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How things stand.
enum Standing {
    Running,
    Over(Result<(), Failure>),
    /// The process knows of nothing, and the files do not tell.
    Unknown,
    /// Nobody answers, and somebody has the files.
    Silent,
}

/// What a request brings.
struct Ready {
    change: DiskChange,
    fds: Vec<OwnedFd>,
}

impl Host {
    /// Carries out what was written down, or what another daemon had begun to.
    pub(super) async fn carry_out_live(
        &self,
        record: &VolumeRecord,
        task: Task,
        again: bool,
        meter: &Meter,
    ) -> Result<Outcome, Failure> {
        let holder = self.holder(record, task).await?;
        let ended = match &holder {
            Some(holder) if !again => self.ask(record, task, holder, meter).await?,
            _ => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => self.follow(record, task, holder.as_ref(), meter).await?,
        };
        let settled = match ended {
            Ok(()) => self.outcome(record, task).await,
            Err(failure) => Err(failure),
        };
        if settled.is_err() && task.is_new() {
            let files = Files::of(&self.0.context, record.id);
            let removed = tokio::task::spawn_blocking(move || files.remove_all());
            if let Ok(Err(failure)) = removed.await {
                tracing::warn!(volume = record.name(), error = %failure, "files of a volume that was not made remain");
            }
        }
        settled
    }

    /// The machine that has, or had, the volume, or the one this is copied from.
    async fn holder(&self, record: &VolumeRecord, task: Task) -> Result<Option<Holder>, Failure> {
        loop {
            let record = record.clone();
            let found = self.registry().change(move |change| -> Result<_, RegistryError> {
                let held = match (task, record.copied_from) {
                    (Task::Mirror, Some(source)) => change.volume(&source.to_string())?,
                    _ => Some(record),
                };
                let Some(held) = held else { return Ok(None) };
                let mut holders = change.holders(&held)?.into_iter();
                Ok(holders.find(|holder| !holder.read_only))
            });
            match found.await {
                Ok(holder) => return Ok(holder),
                // Says nothing of what became of the work.
                Err(error) => tracing::error!(error = chain(&error), "the machine of a volume can not be looked up"),
            }
            if self.0.context.operations.closing() {
                return Err(cancelled());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks the process. Answers how that ended if it is over with the answer; the outer error is that the daemon ends.
    async fn ask(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: &Holder,
        meter: &Meter,
    ) -> Result<Option<Result<(), Failure>>, Failure> {
        if meter.stopped() {
            return if self.0.context.operations.closing() {
                Err(cancelled())
            } else {
                Ok(Some(Err(cancelled())))
            };
        }
        let (machine, disk, ready) = match self.get_ready(record, task, holder).await {
            Ok(ready) => ready,
            Err(failure) => return Ok(Some(Err(failure))),
        };
        let asked = machine.change_disk(None, disk, ready.change, ready.fds).await;
        Ok(match asked {
            Ok(()) if matches!(task, Task::Snapshot { .. }) => Some(Ok(())),
            Ok(()) => None,
            // It was refused, by the process or before that.
            Err(failure) if failure.code == ErrorCode::WrongState => Some(Err(failure)),
            // Else it may have been carried out, or will be: that is found out.
            Err(failure) => {
                tracing::warn!(volume = record.name(), error = %failure, "work on a disk was asked for without an answer");
                None
            }
        })
    }

    /// Everything that a request needs.
    async fn get_ready(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: &Holder,
    ) -> Result<(Machine, Name, Ready), Failure> {
        let disk = disk_name(holder)?;
        let (_, machine) = self.machine(&holder.id.to_string()).await?;
        let size_bytes = match task {
            Task::Move { .. } | Task::Mirror => {
                let reports = machine.disk_reports().await?.into_iter();
                let report = reports.into_iter().find(|report| report.name == disk);
                report.map_or(0, |report| report.size_bytes)
            }
            _ => 0,
        };
        let (context, record) = (Arc::clone(&self.0.context), record.clone());
        let ready = tokio::task::spawn_blocking(move || prepare(&context, &record, task, size_bytes));
        let ready = ready.await.map_err(|_| lost())??;
        Ok((machine, disk, ready))
    }

    /// Waits for the end. The outer error is that the daemon ends, and the next one follows.
    async fn follow(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: Option<&Holder>,
        meter: &Meter,
    ) -> Result<Result<(), Failure>, Failure> {
        let (mut unknown, mut cancel_sent) = (0, false);
        loop {
            if self.0.context.operations.closing() {
                return Err(cancelled());
            }
            let standing = match self.look(record, task, holder, meter).await {
                Ok(standing) => standing,
                Err(failure) => {
                    // A file that can not be looked at now is not one that nobody needs.
                    tracing::error!(volume = record.name(), error = %failure, "what became of work on a volume is not known yet");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    Standing::Silent
                }
            };
            match standing {
                Standing::Over(ended) => return Ok(ended),
                Standing::Running => unknown = 0,
                Standing::Unknown => unknown += 1,
                Standing::Silent => {}
            }
            if unknown >= UNKNOWN_MAX && task == Task::Stream {
                // The file is the machine's, so that it does not tell.
                return Ok(Err(cut_off()));
            }
            if meter.stopped() && !cancel_sent && matches!(standing, Standing::Running) {
                cancel_sent = self.cancel_live(holder).await;
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = meter.given_up(), if !cancel_sent && !meter.stopped() => {}
            }
        }
    }

    async fn cancel_live(&self, holder: Option<&Holder>) -> bool {
        let Some(holder) = holder else { return true };
        let cancelled = async {
            let (_, machine) = self.machine(&holder.id.to_string()).await?;
            machine
                .change_disk(None, disk_name(holder)?, DiskChange::Cancel, Vec::new())
                .await
        };
        match cancelled.await {
            Ok(()) => true,
            Err(failure) => {
                tracing::debug!(error = %failure, "work on a disk was not cancelled");
                false
            }
        }
    }

    /// Asks the process, then the files.
    async fn look(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: Option<&Holder>,
        meter: &Meter,
    ) -> Result<Standing, Failure> {
        let told = self.report(holder).await;
        if let Some(report) = &told
            && let Some(standing) = judge(&self.0.context, record, task, report, meter)
        {
            return Ok(standing);
        }
        let (context, settling) = (Arc::clone(&self.0.context), record.clone());
        let found = tokio::task::spawn_blocking(move || settled(&context, &settling, task));
        Ok(match found.await.map_err(|_| lost())?? {
            None if told.is_some() => Standing::Unknown,
            None => Standing::Silent,
            Some(false) => Standing::Over(Err(cut_off())),
            // An overlay that a machine made and could not go on in is an image, too: nobody has it, and the machine says so.
            Some(true) if task.new_file().is_some() => match self.report(holder).await {
                Some(report) if !is_top(&self.0.context, record, task, &report) => Standing::Over(Err(cut_off())),
                _ => Standing::Over(Ok(())),
            },
            Some(true) => Standing::Over(Ok(())),
        })
    }

    /// What the process says of the disk, if it answers.
    async fn report(&self, holder: Option<&Holder>) -> Option<DiskReport> {
        let holder = holder?;
        let (_, machine) = self.machine(&holder.id.to_string()).await.ok()?;
        let mut reports = machine.disk_reports().await.ok()?.into_iter();
        reports.find(|report| report.name.as_str() == holder.disk)
    }

    /// It is done: what the volume is now.
    async fn outcome(&self, record: &VolumeRecord, task: Task) -> Result<Outcome, Failure> {
        let format = task.new_file().unwrap_or_else(|| record.top()).format;
        if task == Task::Mirror {
            let files = Files::of(&self.0.context, record.id);
            let placed = tokio::task::spawn_blocking(move || files.finish_part(format));
            placed.await.map_err(|_| lost())??;
        }
        Ok(Outcome {
            format,
            size_bytes: record.size_bytes.unwrap_or(0),
            check: None,
            told: None,
        })
    }
}

fn lost() -> Failure {
    Failure::new(ErrorCode::Internal, "the work was lost")
}

fn cut_off() -> Failure {
    let text = "it was cut off by the end of the machine or of the daemon, and the volume is as it was; ask again";
    Failure::new(ErrorCode::MachineFailed, text)
}

fn disk_name(holder: &Holder) -> Result<Name, Failure> {
    let parsed = holder.disk.parse();
    parsed.map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))
}

/// The image a task writes to.
fn target(context: &Context, record: &VolumeRecord, task: Task) -> PathBuf {
    let files = Files::of(context, record.id);
    match task {
        Task::Mirror => files.part(),
        _ => files.layer(task.new_file().unwrap_or_else(|| record.top())),
    }
}

/// Whether an image is the one that a task writes to. The machine may have been given it by another name of its directory.
fn is_target(context: &Context, record: &VolumeRecord, task: Task, name: &str) -> bool {
    let target = target(context, record, task);
    Path::new(name).file_name() == target.file_name()
}

/// Whether the disk goes on in the image that a task writes to.
fn is_top(context: &Context, record: &VolumeRecord, task: Task, report: &DiskReport) -> bool {
    let top = report.layers.first();
    top.is_some_and(|top| is_target(context, record, task, &top.name))
}

/// What the process says; `None` when that is nothing.
fn judge(context: &Context, record: &VolumeRecord, task: Task, report: &DiskReport, meter: &Meter) -> Option<Standing> {
    let done = match task {
        Task::Stream => report.layers.len() == 1,
        _ => task.new_file().is_some(),
    };
    if done && is_top(context, record, task, report) {
        return Some(Standing::Over(Ok(())));
    }
    let kind = if task == Task::Stream {
        DiskJob::Stream
    } else {
        DiskJob::Mirror
    };
    let job = report
        .job
        .as_ref()
        .filter(|job| job.job == kind && is_target(context, record, task, &job.target))?;
    Some(match &job.state {
        DiskJobState::Running {
            done_bytes,
            total_bytes,
        } => {
            meter.at("copy", *done_bytes, *total_bytes);
            Standing::Running
        }
        // A disk that was moved would be on top.
        DiskJobState::Done if matches!(task, Task::Move { .. }) => return None,
        DiskJobState::Done => Standing::Over(Ok(())),
        DiskJobState::Cancelled => Standing::Over(Err(cancelled())),
        DiskJobState::Failed { message } => {
            Standing::Over(Err(Failure::new(ErrorCode::MachineFailed, message.clone())))
        }
    })
}

/// Makes and opens the files that go along. Blocks.
fn prepare(context: &Context, record: &VolumeRecord, task: Task, size_bytes: u64) -> Result<Ready, Failure> {
    let (change, fds) = match task {
        Task::Snapshot { overlay } => {
            let new = empty_layer(context, record.id, overlay)?;
            let change = DiskChange::Snapshot {
                overlay: layer(&new, overlay.format),
                // All files of a volume are in one directory, which may be moved as a whole.
                backing: Files::of(context, record.id).name(record.top()),
            };
            (change, vec![new.file.into()])
        }
        Task::Move { target } => {
            let (new, note) = new_layer(context, record.id, target, size_bytes)?;
            let change = DiskChange::Mirror {
                target: layer(&new, target.format),
                is_zero: true,
                pivot: true,
            };
            (change, vec![new.file.into(), note.into()])
        }
        Task::Mirror => {
            let new = new_part(context, record, size_bytes)?;
            let change = DiskChange::Mirror {
                target: layer(&new, record.top().format),
                is_zero: true,
                pivot: false,
            };
            (change, vec![new.file.into()])
        }
        _ => (DiskChange::Stream, Vec::new()),
    };
    Ok(Ready { change, fds })
}

fn layer(new: &NewFile, format: DiskFormat) -> DiskLayer {
    DiskLayer {
        name: new.path.display().to_string(),
        format,
        writable: true,
        data_file: None,
    }
}
