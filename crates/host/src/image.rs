//! Pulls: container disks that are fetched by reference, and get their record when they are there.

use api_types::{ErrorCode, EventReason, ImageImport, OperationKind, OperationPhase};
use images::Reference;
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::begun;
use crate::catalogue::intake::{self, Intake, IntakeError, Wanted};
use crate::catalogue::source;
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{About, OperationRecord, RegistryError};

impl Host {
    /// Begins to pull an image.
    pub async fn pull_image(&self, reference: &str) -> Result<OperationRecord, Failure> {
        source::check(&self.0.context, &ImageImport::registry(reference))?;
        let id = OperationId::random();
        let subject = reference.to_owned();
        let record = self
            .registry()
            .change(move |change| change.begin_operation(id, OperationKind::ImagePull, &subject))
            .await?;
        self.spawn_pull(id, reference.to_owned());
        Ok(record)
    }

    /// Takes up pulls where the daemon before left them.
    pub(crate) fn resume_pulls(&self, pulls: Vec<(OperationRecord, u32)>) {
        for (pull, begun) in pulls {
            match pull.subject.parse::<Reference>() {
                Ok(_) if !begun::too_often(begun) => {
                    tracing::info!(image = pull.subject, "a pull goes on");
                    self.spawn_pull(pull.id, pull.subject);
                }
                refused => {
                    tracing::error!(image = pull.subject, "a pull does not go on");
                    let failure = match refused {
                        Ok(_) => begun::failure(),
                        // It was parsed when it was asked for, by an older daemon.
                        Err(error) => Failure::of(ErrorCode::ImageUnknown, &error),
                    };
                    let host = self.clone();
                    tokio::spawn(async move { host.end_pull(pull.id, &pull.subject, Err(failure)).await });
                }
            }
        }
    }

    fn spawn_pull(&self, id: OperationId, written: String) {
        let (progress, watched) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let operations = &self.0.context.operations;
        operations.begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let turn = tokio::select! {
                turn = host.0.pulls.acquire() => turn.ok(),
                () = cancel.cancelled() => None,
            };
            let from = ImageImport::registry(&written);
            let (result, _bytes_stay) = loop {
                let wanted = Wanted {
                    from: &from,
                    record: None,
                    max_disk_bytes: None,
                    received: None,
                    frozen: None,
                };
                let result = match &turn {
                    Some(_) => intake::take_in(&host.0.context, wanted, &progress, &cancel).await,
                    None => Err(IntakeError::cancelled()),
                };
                // From here until it is written down, nobody removes the bytes for want of a record.
                let bytes_stay = host.0.images.read().await;
                match &result {
                    Ok(intake) if !host.has(intake).await => {}
                    _ => break (result, bytes_stay),
                }
            };
            drop(turn);
            let operations = &host.0.context.operations;
            match result {
                Err(error) if error.is_cancelled() && operations.closing() => {
                    tracing::info!(image = written, "a pull stops; the next daemon goes on with it");
                }
                result => host.pulled(id, &written, result).await,
            }
            host.0.context.operations.end(id);
        });
    }

    async fn pulled(&self, id: OperationId, written: &str, result: Result<Intake, IntakeError>) {
        let ended = result.map_err(|error| {
            if !error.is_cancelled() {
                tracing::warn!(image = written, error = %error.failure, "pull failed");
            }
            error.failure
        });
        self.end_pull(id, written, ended).await;
    }

    /// Writes down how a pull ended.
    async fn end_pull(&self, id: OperationId, written: &str, ended: Result<Intake, Failure>) {
        let written = written.to_owned();
        let noted = self.write_down("the end of a pull", move |change| -> Result<(), RegistryError> {
            let intake = match &ended {
                Ok(intake) => intake,
                Err(failure) => {
                    let phase = match failure.code {
                        ErrorCode::Cancelled => OperationPhase::Cancelled,
                        _ => OperationPhase::Failed,
                    };
                    return change.end_operation(id, phase, Err(failure));
                }
            };
            let digest = intake.digest.to_string();
            let reference = intake.reference.as_ref().unwrap_or(&written);
            change.point_reference(reference, &digest)?;
            // It is there to stay.
            change.drop_cache_row(&digest)?;
            change.adopt_image(&digest, reference, Some(intake.origin.clone()))?;
            if !intake.was_there {
                let text = format!("image {written} was sealed as {digest}");
                change.event(&About::Image(&digest, Some(&written)), EventReason::Created, &text)?;
            }
            change.end_operation(id, OperationPhase::Succeeded, Ok(Some(&digest)))
        });
        let _ = noted.await; // The next daemon settles what this one can not.
    }
}
