//! In which stores an image is.

use api_types::{ErrorCode, ImageImport, ImageStore, ImageStoreState, OperationKind, OperationPhase};
use image_catalog::ImageAction;
use images::{ImageDigest, ImportError, Store, StoreHealth, StoreName, StoreState};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{no_image, not_allowed, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::image_config::ImageConfig;
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
            let to_stay = targets.contains(host.0.context.store.name());
            host.note_copied(id, &digest, copied, to_stay).await;
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
            let text = format!("no store has the bytes of {digest}: import it again");
            self.bytes_missing(text)
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

    async fn note_copied(&self, id: OperationId, digest: &ImageDigest, copied: Result<(), Failure>, to_stay: bool) {
        let text = digest.to_string();
        let noted = self.registry().change(move |change| match copied {
            Ok(()) => {
                if to_stay {
                    change.drop_cache_row(&text)?;
                }
                change.end_operation(id, OperationPhase::Succeeded, Ok(Some(&text)))
            }
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
        let looked = target.clone();
        self.blocking(move |_| looked.check_writable()).await?;
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
        let text = digest.to_string();
        // A copy in the cache is gone, or is the image itself from now on.
        let is_settled = name == *self.0.context.store.name() || having.len() == 2;
        self.blocking(move |_| target.remove(&digest)).await?;
        if is_settled {
            self.registry()
                .change(move |change| change.drop_cache_row(&text))
                .await?;
        }
        Ok(())
    }

    /// Stores that have these bytes, the default one first.
    pub(crate) async fn having(&self, digest: &ImageDigest) -> Result<Vec<Store>, Failure> {
        let digest = digest.clone();
        self.blocking(move |host| Ok(host.0.context.stores.with_image(&digest)))
            .await
    }

    /// That bytes are in no store, or in none that is available.
    pub(super) fn bytes_missing(&self, text: String) -> Failure {
        let stores = self.0.context.stores.all();
        let away: Vec<_> = stores.filter_map(|store| store.check_available().err()).collect();
        if away.is_empty() {
            return Failure::new(ErrorCode::NotFound, text);
        }
        let away: Vec<_> = away.iter().map(ToString::to_string).collect();
        Failure::new(
            ErrorCode::StoreUnavailable,
            format!("{text}, unless it is in one that is away: {}", away.join("; ")),
        )
    }

    /// All stores, the default one first. Walks their files.
    pub async fn image_stores(&self) -> Result<Vec<ImageStore>, Failure> {
        let states = self.store_states().await?;
        let config = &self.0.context.config.images;
        let mut stores: Vec<_> = states.into_iter().map(|state| shown(state, config)).collect();
        stores.sort_by_key(|store| !store.is_default);
        Ok(stores)
    }

    /// How all stores are. Walks their files.
    pub(crate) async fn store_states(&self) -> Result<Vec<StoreState>, Failure> {
        self.blocking(|host| Ok(host.0.context.stores.states())).await
    }
}

fn shown(state: StoreState, config: &ImageConfig) -> ImageStore {
    let further = config.stores.iter().find(|store| store.name == state.name);
    let usage = state.usage;
    ImageStore {
        name: state.name.to_string(),
        is_default: state.is_default,
        state: match state.health {
            StoreHealth::Ready => ImageStoreState::Ready,
            StoreHealth::ReadOnly => ImageStoreState::ReadOnly,
            StoreHealth::Unavailable => ImageStoreState::Unavailable,
        },
        problem: state.problem,
        cached: further.is_some_and(|store| store.cached),
        images: state.images,
        used_bytes: usage.map(|usage| usage.images_bytes),
        imports_bytes: usage.map(|usage| usage.imports_bytes.saturating_add(usage.blobs_bytes)),
        quota_bytes: state.quota_bytes,
        free_bytes: usage.map(|usage| usage.free_bytes),
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
