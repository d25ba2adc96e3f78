//! Copies of images of slow stores in the default store, from which machines and volumes are made.
//!
//! ```text
//!   asked for ──► queued ──► fetching ──► cached ──► gone
//!                   prefetch            ▲       prune: not used for longest, used by nobody,
//!                             first use ┘              and in another store
//! ```
//!
//! A copy is an image of the default store like any other. What makes it one of the cache is its row in the registry, which is there
//! before the copy is begun, and goes after it: what a kill leaves is known, and is settled at the next start. An image that somebody
//! imports or copies to the default store is there to stay, and loses its row.
//!
//! - `fetch`: copies are made.
//! - `prune`: copies go.

mod fetch;
mod prune;

use std::sync::atomic::Ordering;
use std::time::Duration;

use api_types::{ErrorCode, ImageCache, ImageCacheEntry, ImageCacheState};
use images::{ImageDigest, Store};
use tokio::time::Instant;

use crate::catalogue::no_image;
use crate::failure::Failure;
use crate::host::Host;
use crate::metrics::CacheFigures;
use crate::registry::{CacheRow, CacheState, RegistryError};

impl Host {
    /// The cache and what is in it, what was not used for longest first.
    pub async fn image_cache(&self) -> Result<ImageCache, Failure> {
        let found = self.registry().change(|change| -> Result<_, RegistryError> {
            let mut rows = Vec::new();
            for row in change.cache_rows()? {
                let names = change
                    .images_of(&row.digest)?
                    .iter()
                    .map(|image| image.name().to_owned())
                    .collect();
                let mut used_by = change.image_users(&row.digest)?;
                used_by.extend(change.image_volumes(&row.digest)?);
                rows.push((row, names, used_by));
            }
            Ok(rows)
        });
        let rows: Vec<(CacheRow, Vec<String>, Vec<String>)> = found.await?;
        let mut items = Vec::new();
        for (row, names, used_by) in rows {
            items.push(ImageCacheEntry {
                state: match row.state {
                    CacheState::Queued => ImageCacheState::Queued,
                    CacheState::Fetching => ImageCacheState::Fetching,
                    CacheState::Cached => ImageCacheState::Cached,
                },
                size_bytes: self.copy_bytes(&row).await?,
                digest: row.digest,
                images: names,
                queued_at: row.queued_at,
                used_at: row.used_at,
                hits: row.hits,
                used_by,
                problem: row.problem,
            });
        }
        let config = &self.0.context.config.images;
        let slow = config.stores.iter().filter(|store| store.cached);
        Ok(ImageCache {
            max_bytes: config.cache.max_bytes,
            used_bytes: items.iter().filter_map(|item| item.size_bytes).sum(),
            stores: slow.map(|store| store.name.to_string()).collect(),
            items,
        })
    }

    /// Asks for the copy of an image; it is made soon. One that is there stays.
    pub async fn queue_image(&self, wanted: &str) -> Result<ImageCacheEntry, Failure> {
        let digest = self.cached_digest(wanted).await?;
        let text = digest.to_string();
        let known = self.registry().change(move |change| change.cache_row(&text)).await?;
        if known.is_none() {
            if self.is_at_hand(&digest).await? {
                let text = format!("image {wanted} is in the default store itself: there is nothing to cache");
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
            self.slow_store_of(&digest).await?.ok_or_else(|| {
                let text = format!(
                    "image {wanted} is in no store that is cached and available; karat image store ls tells which are"
                );
                Failure::new(ErrorCode::WrongState, text)
            })?;
        }
        let text = digest.to_string();
        let queued = self.registry().change(move |change| -> Result<_, RegistryError> {
            // Somebody else may have asked meanwhile.
            if change.cache_row(&text)?.is_none() {
                change.put_cache_row(&CacheRow::queued(&text, change.now()))?;
            }
            Ok(())
        });
        queued.await?;
        self.cache_entry(&digest).await
    }

    /// Takes an image out of the cache, or out of the queue of what is to come.
    pub async fn evict_image(&self, wanted: &str) -> Result<(), Failure> {
        let digest = self.cached_digest(wanted).await?;
        self.cache_entry(&digest).await?;
        let _turn = self.0.cache.turn(&digest).await;
        match self.evict(&digest).await? {
            None => Ok(()),
            Some(reason) => Err(Failure::new(
                ErrorCode::InUse,
                format!("the copy of image {wanted} stays: {reason}"),
            )),
        }
    }

    /// Takes all out of the cache that nobody uses, or all out of the queue.
    pub async fn clear_cache(&self, state: ImageCacheState) -> Result<(), Failure> {
        let rows = self.cache_rows().await?;
        let wanted = match state {
            ImageCacheState::Queued => CacheState::Queued,
            ImageCacheState::Fetching => CacheState::Fetching,
            ImageCacheState::Cached => CacheState::Cached,
        };
        for row in rows.into_iter().filter(|row| row.state == wanted) {
            if let Ok(digest) = row.digest.parse() {
                let _turn = self.0.cache.turn(&digest).await;
                if let Some(reason) = self.evict(&digest).await? {
                    tracing::debug!(image = %digest, reason, "a copy stays");
                }
            }
        }
        Ok(())
    }

    /// Looks after the cache until the daemon ends.
    pub(crate) async fn keep_cache(self) {
        if let Err(failure) = self.settle_cache().await {
            tracing::warn!(error = %failure, "the image cache can not be settled; the next start tries again");
        }
        let config = self.0.context.config.images.cache.clone();
        let (mut prefetch, mut prune) = (Instant::now(), Instant::now());
        while !self.0.context.operations.closing() {
            let woken = tokio::select! {
                () = self.0.cache.wake.notified() => true,
                () = tokio::time::sleep_until(prefetch.min(prune)) => false,
            };
            let now = Instant::now();
            if now >= prefetch {
                prefetch = now + config.prefetch_interval;
                self.prefetch().await;
            }
            if woken || now >= prune {
                prune = now + config.prune_interval;
                if let Err(failure) = self.prune_cache().await {
                    tracing::warn!(error = %failure, "the image cache can not be pruned; it is tried again");
                }
            }
            // A defect here must not become a busy loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn cache_figures(&self) -> Result<CacheFigures, Failure> {
        let rows = self.cache_rows().await?;
        let mut figures = CacheFigures {
            hits: self.0.cache.hits.load(Ordering::Relaxed),
            misses: self.0.cache.misses.load(Ordering::Relaxed),
            evictions: self.0.cache.evictions.load(Ordering::Relaxed),
            max_bytes: self.0.context.config.images.cache.max_bytes,
            ..CacheFigures::default()
        };
        for row in rows {
            match row.state {
                CacheState::Cached => figures.images += 1,
                CacheState::Queued | CacheState::Fetching => figures.queued += 1,
            }
            figures.used_bytes += self.copy_bytes(&row).await?.unwrap_or(0);
        }
        Ok(figures)
    }

    /// All copies, those that were not used for longest first.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is not general in its lifetime"
    )]
    async fn cache_rows(&self) -> Result<Vec<CacheRow>, Failure> {
        Ok(self.registry().change(|change| change.cache_rows()).await?)
    }

    async fn cache_entry(&self, digest: &ImageDigest) -> Result<ImageCacheEntry, Failure> {
        let text = digest.to_string();
        let items = self.image_cache().await?.items;
        items.into_iter().find(|item| item.digest == text).ok_or_else(|| {
            let text = format!("image {digest} is neither in the cache nor to come; karat image cache ls lists all");
            Failure::new(ErrorCode::NotFound, text)
        })
    }

    async fn cached_digest(&self, wanted: &str) -> Result<ImageDigest, Failure> {
        let name = wanted.to_owned();
        let found = self.registry().change(move |change| change.find_image(&name)).await?;
        match found {
            Some(row) => row
                .digest
                .as_deref()
                .and_then(|digest| digest.parse().ok())
                .ok_or_else(|| Failure::new(ErrorCode::WrongState, format!("image {} has no data", row.name()))),
            // What is in the cache may have lost its record.
            None => wanted.parse().map_err(|_| no_image(wanted)),
        }
    }

    async fn is_at_hand(&self, digest: &ImageDigest) -> Result<bool, Failure> {
        let digest = digest.clone();
        self.blocking(move |host| match host.0.context.store.get(&digest) {
            Ok(_) => Ok(true),
            Err(images::StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    /// A slow store that has these bytes.
    async fn slow_store_of(&self, digest: &ImageDigest) -> Result<Option<Store>, Failure> {
        let mut having = self.having(digest).await?.into_iter();
        Ok(having.find(|store| self.is_slow(store)))
    }

    /// Whether machines and volumes are made from copies of what is in a store.
    pub(crate) fn is_slow(&self, store: &Store) -> bool {
        let further = &self.0.context.config.images.stores;
        further.iter().any(|one| one.cached && one.name == *store.name())
    }

    /// Space of a copy, bytes; none while it is not there.
    async fn copy_bytes(&self, row: &CacheRow) -> Result<Option<u64>, Failure> {
        let Ok(digest) = row.digest.parse::<ImageDigest>() else {
            return Ok(None);
        };
        if row.state != CacheState::Cached {
            return Ok(None);
        }
        let measured = self.blocking(move |host| host.0.context.store.image_bytes(&digest));
        Ok(measured.await.ok())
    }
}
