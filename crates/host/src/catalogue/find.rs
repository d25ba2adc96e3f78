//! What somebody means by the name of an image.

use image_catalog::{ImageAction, ImageState};
use images::{ImageDigest, Reference, Store, StoreError};

use super::not_allowed;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, ImageRow, RegistryError};

/// An image that machines and volumes can be made from.
pub(crate) struct Usable {
    /// Its record.
    pub(crate) row: ImageRow,
    /// Its bytes.
    pub(crate) sealed: images::ImageRecord,
    /// The store that has them, from which things are made: the default one, or another that is not slow, if such have them.
    pub(crate) store: Store,
}

impl Change<'_> {
    /// The image called `wanted`: by id or name, then by alias, then by digest (of its bytes or of its manifest), then by a reference it was pulled by. Of several
    /// records of the same bytes, the oldest that can be used.
    pub(crate) fn find_image(&self, wanted: &str) -> Result<Option<ImageRow>, RegistryError> {
        if let Some(row) = self.image(wanted)? {
            return Ok(Some(row));
        }
        if let Some(id) = self.alias(wanted)? {
            return self.image(&id);
        }
        let Some(digest) = self.meant_digest(wanted)? else {
            return Ok(None);
        };
        let rows = match self.images_of(&digest.to_string())? {
            rows if rows.is_empty() => self.images_from(&digest.to_string())?,
            rows => rows,
        };
        let best = rows.iter().find(|row| row.state.state.may(ImageAction::Boot));
        Ok(best.or(rows.first()).cloned())
    }

    fn meant_digest(&self, wanted: &str) -> Result<Option<ImageDigest>, RegistryError> {
        if let Ok(digest) = wanted.parse() {
            return Ok(Some(digest));
        }
        let Ok(reference) = wanted.parse::<Reference>() else {
            return Ok(None);
        };
        Ok(match self.referenced(&reference.to_string())? {
            Some(text) => text.parse().ok(),
            // `name@digest` names the same image under any name.
            None => reference.digest().cloned(),
        })
    }
}

impl Host {
    /// The image called `wanted`, to make something from it. Nothing when there is none; an error when it can not be used.
    pub(crate) async fn usable_image(&self, wanted: &str) -> Result<Option<Usable>, Failure> {
        let name = wanted.to_owned();
        let found = self.registry().change(move |change| change.find_image(&name)).await?;
        let Some(row) = found else { return Ok(None) };
        row.state
            .state
            .take(ImageAction::Boot)
            .map_err(|error| not_allowed(row.name(), &error))?;
        let found = match row.digest.as_deref().map(str::parse::<ImageDigest>) {
            Some(Ok(digest)) => self.best_store(&digest).await?,
            _ => None,
        };
        let Some((store, sealed)) = found else {
            let text = format!(
                "the bytes of image {} are gone from the stores: import it again",
                row.name()
            );
            return Err(self.bytes_missing(text).await);
        };
        Ok(Some(Usable { row, sealed, store }))
    }

    /// Where these bytes are best read from, and what they are.
    async fn best_store(&self, digest: &ImageDigest) -> Result<Option<(Store, images::ImageRecord)>, Failure> {
        let mut having = self.having(digest).await?;
        // The default one is the first, and is not slow.
        having.sort_by_key(|store| self.is_slow(store));
        let best = having.into_iter().next();
        // Without any, the default one says what is wrong.
        let best = best.unwrap_or_else(|| self.0.context.store.clone());
        let (asked, digest) = (best.clone(), digest.clone());
        let found = self.blocking(move |_| match asked.get(&digest) {
            Ok(image) => Ok(Some(image)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        });
        Ok(found.await?.map(|image| (best, image)))
    }

    /// What the store has of an image.
    pub(crate) async fn sealed(&self, row: &ImageRow) -> Result<Option<images::ImageRecord>, Failure> {
        let Some(Ok(digest)) = row.digest.as_deref().map(str::parse::<ImageDigest>) else {
            return Ok(None);
        };
        let found = self.blocking(move |host| match host.0.context.store_of(&digest).get(&digest) {
            Ok(image) => Ok(Some(image)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        });
        found.await
    }
}

/// As the API has it.
pub(crate) const fn state_word(state: ImageState) -> api_types::ImageState {
    match state {
        ImageState::Queued => api_types::ImageState::Queued,
        ImageState::Importing => api_types::ImageState::Importing,
        ImageState::Active => api_types::ImageState::Active,
        ImageState::Failed => api_types::ImageState::Failed,
        ImageState::Deactivated => api_types::ImageState::Deactivated,
        ImageState::Deleting => api_types::ImageState::Deleting,
    }
}
