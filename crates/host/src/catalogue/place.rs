//! In which stores an image is.

use api_types::{ErrorCode, ImageImport, ImageStore, OperationKind, OperationPhase};
use image_catalog::ImageAction;
use images::{ImageDigest, ImportError, Store, StoreName};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{no_image, not_allowed, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{Change, ImageRow, OperationRecord};

impl Host {
    /// Begins to copy an image to further stores.
    pub(super) async fn copy_image(&self, wanted: &str, from: &ImageImport) -> Result<OperationRecord, Failure> {
        source::check(&self.0.context, from)?;
        let targets = source::stores(&self.0.context, from)?;
        if targets.is_empty() {
            let text = "empty; name the stores it shall be in";
            return Err(Failure::refused_field("the image can not be copied", "stores", text));
        }
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let (row, digest) = change.placed(&name)?;
            let id = OperationId::random();
            let operation = change.begin_operation(id, OperationKind::ImageCopy, row.name())?;
            Ok((digest, operation))
        });
        let (digest, operation) = begun.await?;
        let (id, cancel) = (operation.id, CancellationToken::new());
        let (progress, watched) = watch::channel(images::Progress::default());
        self.0
            .context
            .operations
            .begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let copied = host.copy_to(&digest, &targets, &progress, &cancel).await;
            host.note_copied(id, &digest, copied).await;
            host.0.context.operations.end(id);
        });
        Ok(operation)
    }

    async fn copy_to(
        &self,
        digest: &ImageDigest,
        targets: &[StoreName],
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let turn = tokio::select! {
            turn = self.0.pulls.acquire() => turn.ok(),
            () = cancel.cancelled() => None,
        };
        let cancelled = || Failure::new(ErrorCode::Cancelled, "the copy was called off");
        let _turn = turn.ok_or_else(cancelled)?;
        // The image stays while it is copied: what comes after its removal would be there without a record.
        let _image_stays = self.0.images.read().await;
        let having = self.having(digest).await?;
        let origin = having.first().ok_or_else(|| {
            let text = format!("no store that can be read has the bytes of {digest}: import it again");
            Failure::new(ErrorCode::NotFound, text)
        })?;
        for target in targets {
            let copied = self
                .0
                .context
                .stores
                .copy(digest, origin.name(), target, progress, cancel);
            copied.await.map_err(|error| match error {
                ImportError::Cancelled => cancelled(),
                error => Failure::of(super::intake::import_code(&error), &error),
            })?;
        }
        Ok(())
    }

    async fn note_copied(&self, id: OperationId, digest: &ImageDigest, copied: Result<(), Failure>) {
        let text = digest.to_string();
        let noted = self.registry().change(move |change| match copied {
            Ok(()) => change.end_operation(id, OperationPhase::Succeeded, Ok(Some(&text))),
            Err(failure) => {
                let phase = match failure.code {
                    ErrorCode::Cancelled => OperationPhase::Cancelled,
                    _ => OperationPhase::Failed,
                };
                change.end_operation(id, phase, Err(&failure))
            }
        });
        if let Err(error) = noted.await {
            tracing::error!(image = %digest, %error, "the end of a copy can not be noted");
        }
    }

    /// Takes an image out of one of several stores. From the default one only if nothing is made from it.
    pub async fn displace_image(&self, wanted: &str, store: &str) -> Result<(), Failure> {
        let unknown = || {
            Failure::new(
                ErrorCode::NotFound,
                format!("no store {store:?}; import-info lists all"),
            )
        };
        let name: StoreName = store.parse().map_err(|_| unknown())?;
        let target = self.0.context.stores.get(&name).ok_or_else(unknown)?.clone();
        let Some(_nobody_clones) = self.nobody_clones().await else {
            let text = "a machine or volume is being made from an image; try again when that is done";
            return Err(Failure::new(ErrorCode::InUse, text));
        };
        let called = wanted.to_owned();
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let (row, digest) = change.placed(&called)?;
            // These bytes are somebody's, whichever record led to them.
            let text = digest.to_string();
            let users = (change.image_users(&text)?, change.image_volumes(&text)?);
            Ok((row, digest, users))
        });
        let (row, digest, (machines, volumes)) = found.await?;
        let having = self.having(&digest).await?;
        if having.iter().all(|store| *store.name() != name) {
            let text = format!("image {} is not in store {name}", row.name());
            return Err(Failure::new(ErrorCode::NotFound, text));
        }
        if having.len() < 2 {
            let text = format!("image {} is in no other store: delete it as a whole", row.name());
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        if name == *self.0.context.store.name() && !(machines.is_empty() && volumes.is_empty()) {
            return Err(super::remove::in_use(&row, &machines, &volumes));
        }
        self.blocking(move |_| target.remove(&digest)).await
    }

    /// Stores that have these bytes, the default one first.
    pub(crate) async fn having(&self, digest: &ImageDigest) -> Result<Vec<Store>, Failure> {
        let digest = digest.clone();
        self.blocking(move |host| Ok(host.0.context.stores.with_image(&digest)))
            .await
    }

    /// All stores, the default one first. Walks their files.
    pub(super) async fn stores(&self) -> Result<Vec<ImageStore>, Failure> {
        let states = self.blocking(|host| Ok(host.0.context.stores.states())).await?;
        let mut stores: Vec<_> = states
            .into_iter()
            .map(|state| ImageStore {
                name: state.name.to_string(),
                is_default: state.is_default,
                problem: state.problem,
                used_bytes: state.usage.map(|usage| usage.images_bytes),
                quota_bytes: state.quota_bytes,
                free_bytes: state.usage.map(|usage| usage.free_bytes),
            })
            .collect();
        for closed in &self.0.context.closed_stores {
            stores.push(ImageStore {
                name: closed.name.to_string(),
                is_default: false,
                problem: Some(crate::failure::chain(&closed.error)),
                used_bytes: None,
                quota_bytes: None,
                free_bytes: None,
            });
        }
        stores.sort_by_key(|store| !store.is_default);
        Ok(stores)
    }
}

impl Change<'_> {
    /// An image whose bytes may be copied, and their digest.
    fn placed(&self, wanted: &str) -> Result<(ImageRow, ImageDigest), Failure> {
        let row = self.find_image(wanted)?.ok_or_else(|| no_image(wanted))?;
        let allowed = row.state.state.take(ImageAction::Place);
        allowed.map_err(|error| not_allowed(row.name(), &error))?;
        match row.digest.as_deref().map(str::parse) {
            Some(Ok(digest)) => Ok((row, digest)),
            _ => {
                let text = format!("image {} has no data", row.name());
                Err(Failure::new(ErrorCode::WrongState, text))
            }
        }
    }
}
