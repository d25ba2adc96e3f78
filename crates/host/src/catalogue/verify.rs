//! Whether sealed bytes are still what they were.

use api_types::{ErrorCode, OperationKind, OperationPhase};
use image_catalog::{ImageAction, ImageState};
use images::ImageDigest;
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::no_image;
use crate::failure::Failure;
use crate::failure::store_code;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{Change, OperationRecord};

impl Host {
    /// Begins to read an image's bytes and to compare them with their digests. An image that is damaged is deactivated.
    pub async fn verify_image(&self, wanted: &str) -> Result<OperationRecord, Failure> {
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            let Some(Ok(digest)) = row.digest.as_deref().map(str::parse::<ImageDigest>) else {
                let text = format!("image {} has no data to be verified", row.name());
                return Err(Failure::new(ErrorCode::WrongState, text));
            };
            let id = OperationId::random();
            Ok((
                digest,
                change.begin_operation(id, OperationKind::ImageVerify, row.name())?,
            ))
        });
        let (digest, operation) = begun.await?;
        let (_, watched) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let id = operation.id;
        self.0
            .context
            .operations
            .begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            host.verify(id, digest, cancel).await;
            host.0.context.operations.end(id);
        });
        Ok(operation)
    }

    async fn verify(&self, id: OperationId, digest: ImageDigest, cancel: CancellationToken) {
        let (host, sealed, stop) = (self.clone(), digest.clone(), cancel.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut having = host.0.context.stores.with_image(&sealed);
            if having.is_empty() {
                // Says what is wrong with it.
                having.push(host.0.context.store.clone());
            }
            let mut read = having
                .iter()
                .map(|store| store.verify(&sealed, &|| stop.is_cancelled()));
            read.try_for_each(|verified| verified.map(drop))
        });
        let read = read.await;
        let outcome = match read {
            _ if cancel.is_cancelled() => Err(Failure::new(ErrorCode::Cancelled, "the verification was cancelled")),
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::of(store_code(&error), &error)),
            Err(_) => Err(Failure::new(ErrorCode::Internal, "the work was lost")),
        };
        if cancel.is_cancelled() && self.0.context.operations.closing() {
            return;
        }
        let text = digest.to_string();
        let noted = self
            .registry()
            .change(move |change| change.note_verified(id, &text, outcome.as_ref().err()));
        if let Err(error) = noted.await {
            tracing::error!(image = %digest, %error, "the end of a verification can not be noted");
        }
    }
}

impl Change<'_> {
    /// Keeps everybody from using images whose bytes are not what they were.
    pub(crate) fn deactivate_damaged(&self, digest: &str) -> Result<(), Failure> {
        for mut row in self.images_of(digest)? {
            if row.state.state == ImageState::Active {
                self.act_on_image(&mut row, ImageAction::Deactivate)?;
            }
        }
        Ok(())
    }

    fn note_verified(&self, id: OperationId, digest: &str, failure: Option<&Failure>) -> Result<(), Failure> {
        let Some(failure) = failure else {
            return Ok(self.end_operation(id, OperationPhase::Succeeded, Ok(Some(digest)))?);
        };
        if failure.code == ErrorCode::DigestMismatch {
            self.deactivate_damaged(digest)?;
        }
        let phase = match failure.code {
            ErrorCode::Cancelled => OperationPhase::Cancelled,
            _ => OperationPhase::Failed,
        };
        Ok(self.end_operation(id, phase, Err(failure))?)
    }
}
