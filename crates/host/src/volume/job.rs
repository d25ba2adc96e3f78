//! Carrying jobs out, and writing down how they ended.

use std::sync::Arc;

use api_types::{ErrorCode, EventReason, OperationPhase, VolumeState};
use spec::{DiskFormat, NameError, OperationId, VolumeId};

use crate::begun;
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{About, Change, Job, RegistryError, Task, VolumeRecord};
use crate::volume_store::{self, Files, Meter, Outcome, cancelled, live_holder};

impl Host {
    /// Takes up the work on volumes where the daemon before left it.
    pub(crate) fn resume_volumes(&self, records: Vec<VolumeRecord>) {
        for record in records {
            if record.state == VolumeState::Deleting {
                let host = self.clone();
                tokio::spawn(async move {
                    if let Err(failure) = host.remove_volume(record).await {
                        tracing::error!(error = %failure, "a volume can not be removed");
                    }
                });
            } else if let Some(job) = record.job {
                tracing::info!(volume = record.name(), task = ?job.task, "work on a volume is begun again");
                self.spawn(record, job, true);
            } else if !record.dropped.is_empty() {
                let host = self.clone();
                tokio::spawn(async move { host.drop_files(record.id).await });
            }
        }
    }

    /// Carries out what was written down.
    pub(super) fn spawn_job(&self, record: VolumeRecord, job: Job) {
        self.spawn(record, job, false);
    }

    /// `again`: another daemon had begun it.
    fn spawn(&self, record: VolumeRecord, job: Job, again: bool) {
        let (meter, watched, cancel) = Meter::new();
        let operations = &self.0.context.operations;
        operations.begin(job.operation, Worker::Volume(watched, cancel));
        let host = self.clone();
        tokio::spawn(async move {
            let result = if job.task.is_live() {
                host.carry_out_live(&record, job.task, again, &meter).await
            } else if begun::too_often(job.begun) {
                host.refuse(&record, job.task).await
            } else {
                host.carry_out(record.clone(), job, meter).await
            };
            let operations = &host.0.context.operations;
            let given_up = result
                .as_ref()
                .is_err_and(|failure| failure.code == ErrorCode::Cancelled);
            if given_up && operations.closing() {
                tracing::info!(
                    volume = record.name(),
                    "work on a volume stops; the next daemon goes on"
                );
            } else {
                let id = record.id;
                host.note(record, job, result).await;
                host.drop_files(id).await;
            }
            host.0.context.operations.end(job.operation);
        });
    }

    /// Ends a job that one daemon after the other did not survive.
    async fn refuse(&self, record: &VolumeRecord, task: Task) -> Result<Outcome, Failure> {
        tracing::error!(volume = record.name(), ?task, "work on a volume is not begun again");
        let (files, record, failure) = (Files::of(&self.0.context, record.id), record.clone(), begun::failure());
        let told = failure.clone();
        let cleared = tokio::task::spawn_blocking(move || clear(&files, &record, task, &failure));
        if let Ok(Err(failure)) = cleared.await {
            tracing::warn!(error = %failure, "files of a volume that was not made remain");
        }
        Err(told)
    }

    async fn carry_out(&self, record: VolumeRecord, job: Job, meter: Meter) -> Result<Outcome, Failure> {
        let jobs = Arc::clone(&self.0.volumes.jobs);
        let _turn = tokio::select! {
            turn = jobs.acquire_owned() => turn.map_err(|_| cancelled())?,
            () = meter.given_up() => return Err(cancelled()),
        };
        if let Task::Resize { size_bytes } = job.task
            && let Some(outcome) = self.resize_live(&record, size_bytes).await?
        {
            return Ok(outcome);
        }
        let context = Arc::clone(&self.0.context);
        tokio::task::spawn_blocking(move || {
            let result = volume_store::carry_out(&context, &record, job.task, &meter);
            // What a daemon that ends leaves is cleared, or used, by the next.
            if let Err(failure) = &result
                && !context.operations.closing()
                && let Err(failure) = clear(&Files::of(&context, record.id), &record, job.task, failure)
            {
                tracing::warn!(volume = record.name(), error = %failure, "files of a volume that was not made remain");
            }
            result
        })
        .await
        .unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the work was lost")))
    }

    /// Has the machine that runs with the volume make it larger; `None` where none does.
    async fn resize_live(&self, record: &VolumeRecord, size_bytes: u64) -> Result<Option<Outcome>, Failure> {
        let volume = record.clone();
        let holder = self.registry().change(move |change| live_holder(change, &volume));
        let Some(holder) = holder.await? else {
            return Ok(None);
        };
        let disk = holder
            .disk
            .parse()
            .map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))?;
        let (_, machine) = self.machine(&holder.id.to_string()).await?;
        let mut size_bytes = size_bytes;
        if let Err(failure) = machine.resize_disk(disk, size_bytes).await {
            // An answer that did not come says nothing of what was done.
            let reports = machine.disk_reports().await.unwrap_or_default();
            let has = reports.into_iter().find(|report| report.name.as_str() == holder.disk);
            match has.map(|report| report.size_bytes) {
                Some(has) if has >= size_bytes => size_bytes = has,
                _ => return Err(failure),
            }
        }
        Ok(Some(Outcome {
            format: record.format.unwrap_or(DiskFormat::Raw),
            size_bytes,
            check: None,
            told: None,
        }))
    }

    /// Removes the files a volume does not consist of any more. What can not be removed now is when the daemon starts next.
    async fn drop_files(&self, id: VolumeId) {
        // One after the other: a number that is free again may have a new file by the time a second one comes to it.
        let _turn = self.0.volumes.removal.lock().await;
        let context = Arc::clone(&self.0.context);
        let removed = tokio::task::spawn_blocking(move || -> Result<(), Failure> {
            let key = id.to_string();
            let record = context.registry.change_now(|change| change.volume(&key))?;
            let Some(record) = record.filter(|record| !record.dropped.is_empty()) else {
                return Ok(());
            };
            Files::of(&context, id).drop_layers(&record.dropped, record.top())?;
            context.registry.change_now(|change| -> Result<(), Failure> {
                if let Some(mut now) = change.volume(&key)? {
                    now.dropped.retain(|file| !record.dropped.contains(file));
                    change.update_volume(&now)?;
                }
                Ok(())
            })
        });
        if let Ok(Err(failure)) = removed.await {
            tracing::warn!(volume = %id, error = %failure, "files of a volume remain until the daemon starts next");
        }
    }

    /// Writes down how a job ended, again and again until that works.
    async fn note(&self, record: VolumeRecord, job: Job, result: Result<Outcome, Failure>) {
        let context = Arc::clone(&self.0.context);
        let noted = self.write_down("the end of work on a volume", move |change| {
            // What was sent is there still: it was not the upload's fault.
            let sent = job.task == Task::Finish && Files::of(&context, record.id).upload().exists();
            ended(change, record.clone(), job, &result, sent)
        });
        let _ = noted.await; // The next daemon settles what this one can not.
    }
}

/// Removes what a job that failed leaves. An upload goes only if it can not become what was asked for, or is not wanted any more.
fn clear(files: &Files, record: &VolumeRecord, task: Task, failure: &Failure) -> Result<(), Failure> {
    let useless = matches!(
        failure.code,
        ErrorCode::DiskRefused
            | ErrorCode::DiskNotStandalone
            | ErrorCode::ChecksumMismatch
            | ErrorCode::InvalidSpec
            | ErrorCode::Cancelled
    );
    match task {
        Task::Create => files.remove_all(),
        Task::Finish if useless => files.remove_all(),
        Task::Finish => files.give_back(record.sent_bytes),
        // Files of live work are dropped by its record, or by whoever follows it.
        _ => Ok(()),
    }
}

/// Writes the end of a job down; `sent` tells that an upload is there that can be looked at again.
fn ended(
    change: &Change<'_>,
    record: VolumeRecord,
    job: Job,
    result: &Result<Outcome, Failure>,
    sent: bool,
) -> Result<(), RegistryError> {
    // Nobody else writes to a record with a job; but it may have been deleted by hand.
    let mut record = change.volume(&record.id.to_string())?.unwrap_or(record);
    record.job = None;
    let (now, name) = (change.now(), record.name().to_owned());
    let was = record.state;
    let is_new = job.task.is_new();
    if job.task.changes_files() {
        record.settle(job.task, result.is_ok());
    }
    match result {
        Ok(outcome) => {
            record.format = Some(outcome.format);
            record.size_bytes = Some(outcome.size_bytes);
            if let Some(check) = &outcome.check {
                record.last_check = Some(check.clone());
            }
            if is_new {
                record.enter(VolumeState::Ready, None, None, now);
            }
        }
        Err(failure) if sent => {
            let text = format!(
                "{}; what was sent is kept: the same karat volume upload goes on with it",
                failure.detail
            );
            record.enter(VolumeState::Creating, Some("AwaitingUpload"), Some(text), now);
        }
        Err(failure) if is_new => {
            let word = format!("{:?}", failure.code);
            record.enter(VolumeState::Failed, Some(&word), Some(failure.detail.clone()), now);
        }
        Err(_) => {}
    }
    change.update_volume(&record)?;
    if was != record.state {
        let text = match &record.message {
            Some(why) => format!("volume {name} is {}: {why}", word(record.state)),
            None => format!("volume {name} is {}", word(record.state)),
        };
        change.event(&About::Volume(record.id, &name), EventReason::PhaseChanged, &text)?;
    }
    end_operation(change, job.operation, &name, result)
}

fn end_operation(
    change: &Change<'_>,
    id: OperationId,
    name: &str,
    result: &Result<Outcome, Failure>,
) -> Result<(), RegistryError> {
    match result {
        Ok(outcome) => {
            let told = outcome.told.as_deref().unwrap_or(name);
            change.end_operation(id, OperationPhase::Succeeded, Ok(Some(told)))
        }
        Err(failure) => {
            tracing::warn!(volume = name, error = %failure, "work on a volume ended");
            let phase = match failure.code {
                ErrorCode::Cancelled => OperationPhase::Cancelled,
                _ => OperationPhase::Failed,
            };
            change.end_operation(id, phase, Err(failure))
        }
    }
}

const fn word(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Creating => "creating",
        VolumeState::Ready => "ready",
        VolumeState::Failed => "failed",
        VolumeState::Deleting => "deleting",
    }
}
