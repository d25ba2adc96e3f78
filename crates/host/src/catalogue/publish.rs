//! Images that go out again, to a registry.

use api_types::{ErrorCode, OperationKind, OperationPhase};
use image_catalog::ImageAction;
use images::{ImageDigest, PushError, Pushed, Reference};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::intake::pull_code;
use super::{no_image, not_allowed};
use crate::failure::Failure;
use crate::failure::store_code;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{OperationRecord, RegistryError};

impl Host {
    /// Begins to publish an image as a container disk under a tag.
    pub async fn push_image(&self, wanted: &str, reference: &str) -> Result<OperationRecord, Failure> {
        let parsed = reference.parse::<Reference>();
        let to = parsed.map_err(|error| Failure::of(ErrorCode::InvalidSpec, &error))?;
        if to.digest().is_some() {
            let error = PushError::NoTag(to.to_string());
            return Err(Failure::of(ErrorCode::InvalidSpec, &error));
        }
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            let allowed = row.state.take(ImageAction::Push, change.now());
            allowed.map_err(|error| not_allowed(row.name(), &error))?;
            let Some(Ok(digest)) = row.digest.as_deref().map(str::parse::<ImageDigest>) else {
                let text = format!("image {} has no data to be published", row.name());
                return Err(Failure::new(ErrorCode::WrongState, text));
            };
            let id = OperationId::random();
            let operation = change.begin_operation(id, OperationKind::ImagePush, row.name())?;
            Ok((digest, operation))
        });
        let (digest, operation) = begun.await?;
        let (progress, watched) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let id = operation.id;
        let operations = &self.0.context.operations;
        operations.begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let pushed = host.push(&digest, &to, &progress, &cancel).await;
            host.end_push(id, &to, pushed).await;
            host.0.context.operations.end(id);
        });
        Ok(operation)
    }

    async fn push(
        &self,
        digest: &ImageDigest,
        to: &Reference,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<Pushed, PushError> {
        let _turn = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(PushError::Cancelled),
            turn = self.0.pulls.acquire() => turn,
        };
        let having = self.having(digest).await.unwrap_or_default();
        // Without any, the default one says what is wrong.
        let store = having.into_iter().next();
        let store = store.unwrap_or_else(|| self.0.context.store.clone());
        store.push(digest, to, progress, cancel).await
    }

    async fn end_push(&self, id: OperationId, to: &Reference, pushed: Result<Pushed, PushError>) {
        if matches!(pushed, Err(PushError::Cancelled)) && self.0.context.operations.closing() {
            return;
        }
        let ended = pushed.map(|pushed| pushed.digest.to_string());
        let ended = ended.map_err(|error| Failure::of(push_code(&error), &error));
        let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
            let phase = match &ended {
                Ok(_) => OperationPhase::Succeeded,
                Err(failure) if failure.code == ErrorCode::Cancelled => OperationPhase::Cancelled,
                Err(_) => OperationPhase::Failed,
            };
            change.end_operation(id, phase, ended.as_ref().map(|digest| Some(digest.as_str())))
        });
        if let Err(error) = noted.await {
            tracing::error!(reference = %to, %error, "the end of a publication can not be noted");
        }
    }
}

const fn push_code(error: &PushError) -> ErrorCode {
    match error {
        PushError::Store(error) => store_code(error),
        PushError::NoTag(_) => ErrorCode::InvalidSpec,
        PushError::Registry { source, .. } => pull_code(source),
        PushError::Convert(_) | PushError::Io { .. } => ErrorCode::Internal,
        PushError::Cancelled => ErrorCode::Cancelled,
    }
}
