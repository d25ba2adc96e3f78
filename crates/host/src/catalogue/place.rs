//! In which stores an image is.

use api_types::{ErrorCode, ImageStore, ImageStoreState};
use images::{ImageDigest, Store, StoreHealth, StoreName, StoreState};

use super::spread::misplaced;
use crate::failure::{Failure, store_code};
use crate::host::Host;
use crate::image_config::ImageConfig;
use crate::registry::RegistryError;

impl Host {
    /// Takes an image out of one of several stores, if nothing is made from it there.
    pub async fn displace_image(&self, wanted: &str, store: &str) -> Result<(), Failure> {
        let unknown = || {
            Failure::new(
                ErrorCode::NotFound,
                format!("no store {store:?}; import-info lists all"),
            )
        };
        let name: StoreName = store.parse().map_err(|_| unknown())?;
        let target = self.0.context.stores.get(&name).ok_or_else(unknown)?.clone();
        let looked = target.ask(Store::check_writable).await;
        looked.map_err(|error| Failure::of(store_code(&error), &error))?;
        let Some(_nobody_clones) = self.nobody_clones().await else {
            let text = "a machine or volume is being made from an image; try again when that is done";
            return Err(Failure::new(ErrorCode::InUse, text));
        };
        let (called, recorded) = (wanted.to_owned(), self.0.context.recorded(&target));
        let found = self.registry().change(move |change| -> Result<_, Failure> {
            let (row, digest) = change.placed(&called)?;
            // These bytes are somebody's, whichever record led to them.
            let text = digest.to_string();
            let store = recorded.as_deref();
            let users = (
                change.image_users_in(&text, store)?,
                change.image_volumes_in(&text, store)?,
            );
            Ok((row, digest, users))
        });
        let (row, digest, (machines, volumes)) = found.await?;
        let having = self.having(&digest).await?;
        let mut placement = row.placement.clone();
        placement.stores = having.iter().map(|store| store.name().to_string()).collect();
        let taken = placement.remove(name.as_str());
        taken.map_err(|error| misplaced(row.name(), &error))?;
        if !(machines.is_empty() && volumes.is_empty()) {
            return Err(super::remove::in_use(&row, &machines, &volumes));
        }
        let text = digest.to_string();
        // A copy in the cache is gone, or is the image itself from now on.
        let is_settled = name == *self.0.context.store.name() || having.len() == 2;
        let (left, gone) = (placement.stores, name.to_string());
        let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
            for mut row in change.images_of(&text)? {
                row.placement.taken_from(&gone, &left);
                change.update_image(&mut row)?;
            }
            if is_settled {
                change.drop_cache_row(&text)?;
            }
            Ok(())
        });
        // First: bytes that nobody counts on are less trouble than bytes that are not there.
        noted.await?;
        self.blocking(move |_| target.remove(&digest)).await
    }

    /// Stores that have these bytes, the default one first.
    pub(crate) async fn having(&self, digest: &ImageDigest) -> Result<Vec<Store>, Failure> {
        let digest = digest.clone();
        self.blocking(move |host| Ok(host.0.context.stores.with_image(&digest)))
            .await
    }

    /// That bytes are in no store, or in none that is available.
    pub(super) async fn bytes_missing(&self, text: String) -> Failure {
        let mut away = Vec::new();
        for store in self.0.context.stores.all() {
            if let Err(error) = store.ask(Store::check_available).await {
                away.push(error.to_string());
            }
        }
        if away.is_empty() {
            return Failure::new(ErrorCode::NotFound, text);
        }
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
