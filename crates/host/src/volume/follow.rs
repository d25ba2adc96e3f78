//! Having a machine process work on a volume, and following that to its end.
//!
//! What is to be done is written down before anything of it is asked of the process, and what it came to is written down in one
//! transaction with the end of the operation. In between either side may die at any instant: the process and the files tell the
//! rest, see [`crate::volume_store`]. The daemon does not ask twice: where another one had begun, this one only follows.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api_types::{ErrorCode, VolumeAttachment};
use control::{DiskChange, DiskJob, DiskJobState, DiskLayer, DiskReport};
use spec::{DiskFormat, Name, NameError};

use crate::context::Context;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Task, VolumeRecord};
use crate::volume_store::{Files, Meter, NewFile, Outcome, cancelled, empty_layer, new_layer, new_part, settled};

/// How often the process is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often it must have known of nothing before that is believed: a request of the daemon before may be on its way.
const UNKNOWN_MAX: u32 = 10;

/// How things stand.
enum Standing {
    Running,
    Over(Result<(), Failure>),
    /// Neither the process nor the files tell.
    Unknown,
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
    async fn holder(&self, record: &VolumeRecord, task: Task) -> Result<Option<VolumeAttachment>, Failure> {
        let record = record.clone();
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let held = match (task, record.copied_from) {
                (Task::Mirror, Some(source)) => change.volume(&source.to_string())?,
                _ => Some(record),
            };
            let Some(held) = held else { return Ok(None) };
            let mut holders = change.attachments(&held)?.into_iter();
            Ok(holders.find(|holder| !holder.read_only))
        });
        found.await
    }

    /// Asks the process. Answers how that ended if it is over with the answer; the outer error is that the daemon ends.
    async fn ask(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: &VolumeAttachment,
        meter: &Meter,
    ) -> Result<Option<Result<(), Failure>>, Failure> {
        if meter.stopped() {
            return if self.0.context.operations.closing() {
                Err(cancelled())
            } else {
                Ok(Some(Err(cancelled())))
            };
        }
        let asked = async {
            let disk = disk_name(holder)?;
            let (_, machine) = self.machine(&holder.vm).await?;
            let size_bytes = match task {
                Task::Move { .. } | Task::Mirror => {
                    let report = machine
                        .disk_reports()
                        .await?
                        .into_iter()
                        .find(|report| report.name == disk);
                    report.map_or(0, |report| report.size_bytes)
                }
                _ => 0,
            };
            let (context, record) = (Arc::clone(&self.0.context), record.clone());
            let ready = tokio::task::spawn_blocking(move || prepare(&context, &record, task, size_bytes));
            let ready = ready
                .await
                .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))??;
            machine.change_disk(disk, ready.change, ready.fds).await
        };
        Ok(match asked.await {
            Ok(()) if matches!(task, Task::Snapshot { .. }) => Some(Ok(())),
            // It may have been carried out, or will be: that is found out.
            Err(failure) if matches!(failure.code, ErrorCode::Timeout | ErrorCode::MachineFailed) => None,
            Err(failure) => Some(Err(failure)),
            Ok(()) => None,
        })
    }

    /// Waits for the end. The outer error is that the daemon ends, and the next one follows.
    async fn follow(
        &self,
        record: &VolumeRecord,
        task: Task,
        holder: Option<&VolumeAttachment>,
        meter: &Meter,
    ) -> Result<Result<(), Failure>, Failure> {
        let (mut unknown, mut cancel_sent) = (0, false);
        loop {
            if self.0.context.operations.closing() {
                return Err(cancelled());
            }
            let standing = match self.look(record, task, holder, meter).await {
                Ok(standing) => standing,
                Err(failure) => Standing::Over(Err(failure)),
            };
            match standing {
                Standing::Over(ended) => return Ok(ended),
                Standing::Running => unknown = 0,
                Standing::Unknown => unknown += 1,
            }
            if unknown >= UNKNOWN_MAX && task == Task::Stream {
                // The file is the machine's, so that it does not tell; but what the header says later is right either way.
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

    async fn cancel_live(&self, holder: Option<&VolumeAttachment>) -> bool {
        let Some(holder) = holder else { return true };
        let cancelled = async {
            let (_, machine) = self.machine(&holder.vm).await?;
            machine
                .change_disk(disk_name(holder)?, DiskChange::Cancel, Vec::new())
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
        holder: Option<&VolumeAttachment>,
        meter: &Meter,
    ) -> Result<Standing, Failure> {
        let mut told = None;
        if let Some(holder) = holder
            && let Ok((_, machine)) = self.machine(&holder.vm).await
            && let Ok(reports) = machine.disk_reports().await
        {
            told = reports.into_iter().find(|report| report.name.as_str() == holder.disk);
        }
        if let Some(report) = told
            && let Some(standing) = judge(&self.0.context, record, task, &report, meter)
        {
            return Ok(standing);
        }
        let (context, record) = (Arc::clone(&self.0.context), record.clone());
        let found = tokio::task::spawn_blocking(move || settled(&context, &record, task));
        let found = found
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))??;
        Ok(match found {
            None => Standing::Unknown,
            Some(true) => Standing::Over(Ok(())),
            Some(false) => Standing::Over(Err(cut_off())),
        })
    }

    /// It is done: what the volume is now.
    async fn outcome(&self, record: &VolumeRecord, task: Task) -> Result<Outcome, Failure> {
        let (context, record) = (Arc::clone(&self.0.context), record.clone());
        let made = tokio::task::spawn_blocking(move || {
            let format = match task {
                Task::Mirror => {
                    let files = Files::of(&context, record.id);
                    let format = record.top().format;
                    files.finish_part(format)?;
                    format
                }
                _ => task.new_file().unwrap_or_else(|| record.top()).format,
            };
            Ok(Outcome {
                format,
                size_bytes: record.size_bytes.unwrap_or(0),
                check: None,
                told: None,
            })
        });
        made.await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
    }
}

fn cut_off() -> Failure {
    let text = "it was cut off by the end of the machine or of the daemon, and the volume is as it was; ask again";
    Failure::new(ErrorCode::MachineFailed, text)
}

fn disk_name(holder: &VolumeAttachment) -> Result<Name, Failure> {
    let parsed = holder.disk.parse();
    parsed.map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))
}

/// The name of the image a task writes to, as messages have it.
fn target(context: &Context, record: &VolumeRecord, task: Task) -> String {
    let files = Files::of(context, record.id);
    let path = match task {
        Task::Mirror => files.part(),
        _ => files.layer(task.new_file().unwrap_or_else(|| record.top())),
    };
    path.display().to_string()
}

/// What the process says; `None` when that is nothing.
fn judge(context: &Context, record: &VolumeRecord, task: Task, report: &DiskReport, meter: &Meter) -> Option<Standing> {
    let target = target(context, record, task);
    if task.new_file().is_some() && report.layers.first().is_some_and(|top| top.name == target) {
        return Some(Standing::Over(Ok(())));
    }
    let kind = if task == Task::Stream {
        DiskJob::Stream
    } else {
        DiskJob::Mirror
    };
    // The machine may have been given the top by another name of its directory.
    let is_target = |name: &str| std::path::Path::new(name).file_name() == std::path::Path::new(&target).file_name();
    let job = report
        .job
        .as_ref()
        .filter(|job| job.job == kind && is_target(&job.target))?;
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
