//! Data comes into a record.

use api_types::{ErrorCode, EventReason, ImageImport, OperationPhase};
use image_catalog::{Failure as ImportFailure, ImageAction, ImageId, ImageState};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::body::Received;
use super::intake::{self, Intake, IntakeError, Wanted};
use crate::begun;
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{About, Change, ImageRow};

/// How an import ended.
pub(crate) enum Ended {
    /// The image is active.
    Active,
    /// It ended without an image.
    Failed(IntakeError),
    /// The daemon ends; the next one goes on.
    Postponed,
}

/// What is left to do after the end of an import was written down.
enum Noted {
    /// Nothing.
    Done,
    /// The image was deleted meanwhile: what came is to be removed.
    IsToGo,
}

impl Host {
    /// Imports into a record whose import was begun, in a task of its own.
    pub(crate) fn spawn_import(&self, row: ImageRow) {
        let host = self.clone();
        tokio::spawn(async move {
            host.run_import(&row, CancellationToken::new(), None).await;
        });
    }

    /// Takes up imports where the daemon before left them, and finishes deletions.
    pub(crate) fn resume_images(&self, rows: Vec<ImageRow>) {
        self.end_copies(&rows);
        for row in rows {
            match row.state.state {
                // Those of boot sources are taken up by their schedule.
                ImageState::Importing if row.boot_source.is_none() => {
                    tracing::info!(image = row.name(), "an import goes on");
                    self.spawn_import(row);
                }
                ImageState::Deleting => {
                    let host = self.clone();
                    tokio::spawn(async move {
                        if let Err(failure) = host.finish_removal(row.id).await {
                            tracing::warn!(image = row.name(), error = %failure, "the image can not be removed");
                        }
                    });
                }
                _ => {}
            }
        }
    }

    /// Imports into a record whose import was begun, and writes down how that ended.
    /// `received` is what a client sends, and can be imported once.
    pub(crate) async fn run_import(
        &self,
        row: &ImageRow,
        cancel: CancellationToken,
        mut received: Option<Received>,
    ) -> Ended {
        let Some(job) = row.import.clone() else {
            return Ended::Postponed;
        };
        self.note_targets(row.id, &job.from).await;
        let operations = &self.0.context.operations;
        let ended = loop {
            if received.is_none() && matches!(job.from, ImageImport::Upload { .. }) {
                received = self.whole_upload(row.id).await.map(Received::File);
            }
            let taken = if begun::too_often(row.begun) {
                Err(IntakeError::begun_too_often())
            } else {
                let wanted = Wanted {
                    from: &job.from,
                    record: Some(&row.record),
                    max_disk_bytes: job.max_disk_bytes,
                    received: received.take(),
                    frozen: None,
                };
                self.fetch(job.operation, wanted, &cancel).await
            };
            if let Err(error) = &taken {
                if error.is_cancelled() && operations.closing() {
                    tracing::info!(image = row.name(), "an import stops; the next daemon goes on with it");
                    break Ended::Postponed;
                }
                tracing::warn!(image = row.name(), error = %error.failure, "import failed");
            }
            // From here until it is written down, nobody removes the bytes for want of a record.
            let bytes_stay = self.0.images.read().await;
            if let Ok(intake) = &taken
                && !self.has(intake).await
            {
                continue;
            }
            let noted = self.note_import(row.id, job.operation, &taken).await;
            drop(bytes_stay);
            if matches!(job.from, ImageImport::Upload { .. }) {
                self.drop_whole_uploads(row.id).await;
            }
            if matches!(noted, Noted::IsToGo)
                && let Err(failure) = self.finish_removal(row.id).await
            {
                tracing::warn!(image = row.name(), error = %failure, "it can not be removed; the next start tries again");
            }
            break match taken {
                Ok(_) => Ended::Active,
                Err(error) => {
                    if let Some(digest) = error.left.clone() {
                        self.drop_unwanted(digest).await;
                    }
                    Ended::Failed(error)
                }
            };
        };
        operations.end(job.operation);
        ended
    }

    /// Whether the store still has what came in: another record may have had the same bytes, and may have gone with them since.
    pub(crate) async fn has(&self, intake: &Intake) -> bool {
        let stores = &self.0.context.stores;
        let store = stores.get(&intake.store).unwrap_or(&self.0.context.store);
        let digest = intake.digest.clone();
        store.ask(move |store| store.get(&digest).map(drop)).await.is_ok()
    }

    async fn fetch(
        &self,
        id: OperationId,
        mut wanted: Wanted<'_>,
        cancel: &CancellationToken,
    ) -> Result<Intake, IntakeError> {
        let (progress, watched) = watch::channel(images::Progress::default());
        let context = &self.0.context;
        context.operations.begin(id, Worker::Pull(watched, cancel.clone()));
        let turn = tokio::select! {
            turn = self.0.pulls.acquire() => turn.ok(),
            () = cancel.cancelled() => None,
        };
        match turn {
            Some(_turn) => {
                wanted.frozen = self.freeze(id, wanted.from, &progress, cancel).await?;
                intake::take_in(context, wanted, &progress, cancel).await
            }
            None => Err(IntakeError::cancelled()),
        }
    }

    async fn note_import(&self, id: ImageId, operation: OperationId, taken: &Result<Intake, IntakeError>) -> Noted {
        let taken = taken.clone();
        let noted = self.write_down("the end of an import", move |change| {
            change.note_import(id, operation, taken.as_ref())
        });
        // The next daemon settles what this one can not.
        noted.await.unwrap_or(Noted::Done)
    }
}

impl Change<'_> {
    fn note_import(
        &self,
        id: ImageId,
        operation: OperationId,
        taken: Result<&Intake, &IntakeError>,
    ) -> Result<Noted, Failure> {
        let gone = IntakeError::cancelled().failure;
        let Some(mut row) = self.image(&id.to_string())? else {
            self.end_operation(operation, OperationPhase::Cancelled, Err(&gone))?;
            return Ok(Noted::Done);
        };
        if row.state.state == ImageState::Deleting {
            self.note_source_import(&row, Err(&IntakeError::cancelled()))?;
            // Bytes that came all the same are found by their digest.
            row.digest = taken.ok().map(|intake| intake.digest.to_string());
            self.update_image(&mut row)?;
            self.end_operation(operation, OperationPhase::Cancelled, Err(&gone))?;
            return Ok(Noted::IsToGo);
        }
        self.note_source_import(&row, taken)?;
        match taken {
            Ok(intake) => {
                let digest = intake.digest.to_string();
                row.digest = Some(digest.clone());
                row.origin = Some(intake.origin.clone());
                if let Some(lineage) = &intake.lineage {
                    row.record = self.inherited(&row, lineage)?;
                }
                for (store, _) in &intake.failed {
                    row.placement.failed(store);
                }
                for store in &intake.stores {
                    row.placement.succeeded(store, intake.was_there);
                }
                if intake
                    .stores
                    .iter()
                    .any(|store| *store == *images::StoreName::default().to_string())
                {
                    // It is there to stay.
                    self.drop_cache_row(&digest)?;
                }
                self.act_on_image(&mut row, ImageAction::Activate)?;
                for (store, why) in &intake.failed {
                    let text = format!("image {} did not get into store {store}: {why}", row.name());
                    let about = About::Image(&digest, Some(row.name()));
                    self.event(&about, EventReason::ConditionChanged, &text)?;
                }
                if let Some(reference) = &intake.reference {
                    self.point_reference(reference, &digest)?;
                }
                self.end_operation(operation, OperationPhase::Succeeded, Ok(Some(&digest)))?;
            }
            Err(error) => {
                let reason = ImportFailure::new(error.code, &error.failure.detail);
                row.placement.call_off();
                let next = row.state.fail(reason, self.now());
                row.state = next.map_err(|error| super::not_allowed(row.name(), &error))?;
                self.update_image(&mut row)?;
                self.tell_image_state(&row)?;
                let phase = match error.failure.code {
                    ErrorCode::Cancelled => OperationPhase::Cancelled,
                    _ => OperationPhase::Failed,
                };
                self.end_operation(operation, phase, Err(&error.failure))?;
            }
        }
        Ok(Noted::Done)
    }

    /// Removes the record of an image, and what leads to it. Its bytes are gone, or others have them too.
    pub(crate) fn forget_image(&self, row: &ImageRow) -> Result<(), Failure> {
        let id = row.id.to_string();
        for mut source in self.boot_sources()? {
            if source.state.imports().iter().any(|import| import.image == id) {
                source.state.forget(&id);
                self.put_boot_source(&source)?;
            }
        }
        if let Some(job) = &row.import {
            // One that was cut off with an earlier daemon; any other is over.
            let gone = IntakeError::cancelled().failure;
            self.end_operation(job.operation, OperationPhase::Cancelled, Err(&gone))?;
        }
        self.delete_image(row.id)?;
        let (about, text) = (row.subject(), format!("image {} was deleted", row.name()));
        Ok(self.event(&About::Image(&about, Some(row.name())), EventReason::Deleted, &text)?)
    }
}
