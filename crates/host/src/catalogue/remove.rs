//! Deletion of images: the record always goes, the bytes with the last record that has them.

use std::time::Duration;

use api_types::ErrorCode;
use image_catalog::{ImageAction, ImageId, ImageState};
use images::{ImageDigest, Store, StoreError};
use tokio::sync::RwLockWriteGuard;

use super::no_image;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, ImageRow, RegistryError};
use crate::store_notes;

/// How long the removal of an image waits for those who make something from one.
const CLONES_TIMEOUT: Duration = Duration::from_secs(2);

impl Host {
    /// Removes an image no machine and no volume was made from. An import under way is called off.
    pub async fn delete_image(&self, wanted: &str, revision: Option<u64>) -> Result<(), Failure> {
        let name = wanted.to_owned();
        let Some(nobody_clones) = self.nobody_clones().await else {
            let text = "a machine or volume is being made from an image; remove this one when that is done";
            return Err(Failure::new(ErrorCode::InUse, text));
        };
        let decided = self
            .registry()
            .change(move |change| change.decide_removal(&name, revision))
            .await?;
        if let Some(operation) = decided.operation
            && self.0.context.operations.cancel(operation)
        {
            // Its task forgets the record once it has stopped.
            return Ok(());
        }
        self.remove_decided(decided.id, &nobody_clones).await
    }

    /// Removes what is left of an image whose deletion was decided, as soon as nothing is made from images.
    pub(crate) async fn finish_removal(&self, id: ImageId) -> Result<(), Failure> {
        loop {
            if let Some(nobody_clones) = self.nobody_clones().await {
                return self.remove_decided(id, &nobody_clones).await;
            }
            // Those who have waited behind this get their turn.
            tokio::time::sleep(CLONES_TIMEOUT).await;
        }
    }

    /// Keeps others from making something from images. Nothing where somebody does so for long: all who want to begin with that wait
    /// behind whoever waits here.
    pub(crate) async fn nobody_clones(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        tokio::time::timeout(CLONES_TIMEOUT, self.0.images.write()).await.ok()
    }

    /// The same, however long that takes.
    pub(super) async fn exclusively(&self) -> RwLockWriteGuard<'_, ()> {
        loop {
            if let Some(nobody_clones) = self.nobody_clones().await {
                return nobody_clones;
            }
            // Those who have waited behind this get their turn.
            tokio::time::sleep(CLONES_TIMEOUT).await;
        }
    }

    /// Removes what an import that failed has left in stores, unless somebody has the same bytes by now.
    pub(crate) async fn drop_unwanted(&self, digest: ImageDigest) {
        let _nobody_clones = self.exclusively().await;
        let text = digest.to_string();
        let wanted = self.registry().change(move |change| -> Result<_, RegistryError> {
            let users = [change.image_users(&text)?, change.image_volumes(&text)?];
            Ok(!change.images_of(&text)?.is_empty() || users.iter().any(|users| !users.is_empty()))
        });
        let removed = match wanted.await {
            Ok(true) => Ok(()),
            Ok(false) => self.remove_bytes(digest.clone()).await,
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = removed {
            tracing::warn!(image = %digest, error = %failure, "what a failed import has left can not be removed");
        }
    }

    /// Removes bytes from all stores; from those that are not available when they are. Nobody makes anything from images meanwhile.
    async fn remove_bytes(&self, digest: ImageDigest) -> Result<(), Failure> {
        self.blocking(move |host| {
            let context = &host.0.context;
            for store in context.stores.all() {
                // Everybody who makes something from images waits for this.
                let there = store.ask_now(Store::check_writable);
                match there.and_then(|()| store.remove(&digest)) {
                    Err(StoreError::NotFound(_)) => {}
                    Err(StoreError::Unavailable { .. }) if store.name() != context.store.name() => {
                        store_notes::owe(context, store.name(), &digest)?;
                    }
                    other => other?,
                }
            }
            host.0.context.drop_blobs();
            Ok(())
        })
        .await
    }

    async fn remove_decided(&self, id: ImageId, _nobody_clones: &RwLockWriteGuard<'_, ()>) -> Result<(), Failure> {
        let found = self.registry().change(move |change| -> Result<_, RegistryError> {
            let Some(row) = change.image(&id.to_string())? else {
                return Ok(None);
            };
            let last = match &row.digest {
                Some(digest) => change.images_of(digest)?.iter().all(|other| other.id == id),
                None => false,
            };
            Ok(Some((row, last)))
        });
        let Some((row, last)) = found.await? else { return Ok(()) };
        let digest: Option<ImageDigest> = row.digest.as_deref().and_then(|digest| digest.parse().ok());
        if let Some(digest) = digest.filter(|_| last) {
            self.remove_bytes(digest).await?;
        }
        let forgotten = self.registry().change(move |change| -> Result<(), Failure> {
            if let Some(digest) = row.digest.as_ref().filter(|_| last) {
                change.forget_references_to(digest)?;
                change.drop_cache_row(digest)?;
            }
            change.forget_image(&row)
        });
        forgotten.await?;
        self.0.boot.wake.notify_one();
        Ok(())
    }
}

/// A deletion that was decided.
pub(crate) struct Decided {
    pub(crate) id: ImageId,
    /// The import that is to be called off.
    pub(crate) operation: Option<spec::OperationId>,
}

impl Change<'_> {
    /// Decides that an image goes, if nothing speaks against it.
    pub(crate) fn decide_removal(&self, wanted: &str, revision: Option<u64>) -> Result<Decided, Failure> {
        let mut row = self.find_image(wanted)?.ok_or_else(|| no_image(wanted))?;
        if revision.is_some_and(|revision| revision != row.revision) {
            let text = format!(
                "image {} has revision {} by now: look at it again",
                row.name(),
                row.revision
            );
            return Err(Failure::new(ErrorCode::RevisionMismatch, text));
        }
        if let Err(error) = row.record.deletable() {
            let text = format!("image {}: {error}", row.name());
            return Err(Failure::new(ErrorCode::ImageProtected, text));
        }
        let (machines, volumes) = self.needed_by(&row)?;
        if !machines.is_empty() || !volumes.is_empty() {
            return Err(in_use(&row, &machines, &volumes));
        }
        let operation = row.operation();
        if row.state.state != ImageState::Deleting {
            self.act_on_image(&mut row, ImageAction::Delete)?;
        }
        Ok(Decided { id: row.id, operation })
    }

    /// Machines and volumes that could not be without this record: those of its bytes, unless another record has these too.
    pub(crate) fn needed_by(&self, row: &ImageRow) -> Result<(Vec<String>, Vec<String>), RegistryError> {
        let Some(digest) = &row.digest else {
            return Ok(Default::default());
        };
        let others = self.images_of(digest)?;
        let mut others = others.iter().filter(|other| other.id != row.id);
        if others.any(|other| other.state.state != ImageState::Deleting) {
            return Ok(Default::default());
        }
        Ok((self.image_users(digest)?, self.image_volumes(digest)?))
    }
}

pub(super) fn in_use(row: &ImageRow, machines: &[String], volumes: &[String]) -> Failure {
    let machines =
        (!machines.is_empty()).then(|| format!("used by {}; delete these machines first", machines.join(", ")));
    let volumes = (!volumes.is_empty()).then(|| {
        format!(
            "shared by {}; delete these volumes first, or convert them into ones that stand on their own",
            volumes.join(", ")
        )
    });
    let users: Vec<_> = machines.into_iter().chain(volumes).collect();
    Failure::new(
        ErrorCode::InUse,
        format!("image {} is {}", row.name(), users.join(", and ")),
    )
}
