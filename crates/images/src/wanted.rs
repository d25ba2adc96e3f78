//! What imports fetched and may want again: layers, and beginnings of disks.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::store::{children, occupied};
use crate::{ImageDigest, Store, StoreError, durable, fetch, partial};

/// How long a beginning is kept without anybody going on with it: a week, so that an import that fails on a Friday goes on the
/// Friday after.
const BEGINNING_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);

impl Store {
    /// Drops whole and partial layers and beginnings of disks that no import under way wants. Returns the bytes freed.
    pub fn drop_unused_blobs(&self) -> Result<u64, StoreError> {
        self.drop_unused_but(None)
    }

    /// As [`Self::drop_unused_blobs`], and keeps the beginning whose lock is called `own`.
    fn drop_unused_but(&self, own: Option<&str>) -> Result<u64, StoreError> {
        let mut freed = 0;
        for path in children(&self.partial()).map_err(StoreError::io("list", &self.partial()))? {
            let name = partial::lock_name(&path);
            if own == Some(name.as_str()) || self.is_locked(&name) {
                continue;
            }
            freed += occupied(&path).map_err(StoreError::io("measure", &path))?;
            durable::remove_all(&path).map_err(StoreError::io("remove", &path))?;
        }
        let wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for path in children(&self.blobs()).map_err(StoreError::io("list", &self.blobs()))? {
            let hex = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if ImageDigest::from_hex(hex).is_some_and(|digest| wanted.contains_key(&digest)) {
                continue;
            }
            freed += occupied(&path).map_err(StoreError::io("measure", &path))?;
            durable::remove_all(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(freed)
    }

    /// Drops what no import wants, except the beginning whose lock is called `own`, which goes on with it; true if that freed
    /// anything.
    pub(crate) fn make_way(&self, own: Option<&str>) -> bool {
        match self.drop_unused_but(own) {
            Ok(freed) => freed > 0,
            Err(error) => {
                tracing::warn!("cannot drop what no import wants: {error}");
                false
            }
        }
    }

    /// Drops beginnings that nobody went on with for [`BEGINNING_AGE_MAX`].
    pub(crate) fn drop_aged(&self) {
        let Ok(paths) = children(&self.partial()) else { return };
        for path in paths {
            let age = partial::age(&path).unwrap_or_default();
            if age < BEGINNING_AGE_MAX || self.is_locked(&partial::lock_name(&path)) {
                continue;
            }
            let days = age.as_secs() / 86_400;
            match durable::remove_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), days, "a beginning nobody went on with is gone"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a leftover can not be removed"),
            }
        }
    }

    /// Keeps blobs from being dropped until the token is.
    pub(crate) fn want(&self, digests: Vec<ImageDigest>) -> Wanted {
        let mut wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &digests {
            *wanted.entry(digest.clone()).or_default() += 1;
        }
        Wanted {
            store: self.clone(),
            digests,
        }
    }

    /// Whether somebody holds the lock called `name`, or waits for it.
    fn is_locked(&self, name: &str) -> bool {
        let locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.get(name).is_some_and(|lock| Arc::strong_count(lock) > 1)
    }
}

/// Blobs an import wants.
pub(crate) struct Wanted {
    store: Store,
    digests: Vec<ImageDigest>,
}

impl Wanted {
    /// This layer has served, unless another import wants it too: what was in it is durable elsewhere.
    pub(crate) fn layer_served(&mut self, digest: &ImageDigest) {
        let (done, rest) = self.digests.drain(..).partition(|wanted| wanted == digest);
        self.digests = rest;
        let done = Self {
            store: self.store.clone(),
            digests: done,
        };
        done.served();
    }

    /// The image is sealed: its layers have served, unless another import wants them too.
    pub(crate) fn served(mut self) {
        for digest in self.release() {
            let path = fetch::finished_path(&self.store.blobs(), &digest);
            if let Err(error) = durable::remove_all(&path) {
                tracing::warn!(path = %path.display(), "cannot remove a layer that has served: {error}");
            }
        }
    }

    /// Gives up the claims; returns what nobody wants any more.
    fn release(&mut self) -> Vec<ImageDigest> {
        let mut wanted = self.store.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = Vec::new();
        for digest in self.digests.drain(..) {
            match wanted.get_mut(&digest) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    wanted.remove(&digest);
                    free.push(digest);
                }
            }
        }
        free
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.release();
    }
}
