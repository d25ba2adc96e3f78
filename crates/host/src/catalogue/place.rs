//! In which stores an image is.

use api_types::{ErrorCode, ImageStore};
use images::{ImageDigest, Store, StoreName};

use super::spread::misplaced;
use crate::failure::Failure;
use crate::host::Host;

impl Host {
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
        let mut placement = row.placement.clone();
        placement.stores = having.iter().map(|store| store.name().to_string()).collect();
        let taken = placement.remove(name.as_str());
        taken.map_err(|error| misplaced(row.name(), &error))?;
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
