//! Copies are made: on first use, or because somebody asked for them.

use std::sync::atomic::Ordering;

use api_types::ErrorCode;
use image_catalog::{ImageAction, ImageState};
use images::{ImageDigest, Store};
use tokio::sync::{RwLockReadGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::catalogue::intake::import_code;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{CacheRow, CacheState, Change, RegistryError};

/// How often a copy is made that leaves the cache again before it is used.
const HOLD_TRIES: u32 = 3;

impl Host {
    /// Keeps images from being removed, and sees to it that the one called `wanted` is not in slow stores alone. What is copied for that
    /// is copied before anybody has to wait for it.
    pub(crate) async fn hold_image(&self, wanted: &str) -> Result<RwLockReadGuard<'_, ()>, Failure> {
        for _ in 0..HOLD_TRIES {
            let name = wanted.to_owned();
            let found = self.registry().change(move |change| change.find_image(&name)).await?;
            // What can not be used, or is damaged, is refused by who makes something from it.
            let usable = found.filter(|row| row.state.state.may(ImageAction::Boot));
            let digest = usable.and_then(|row| row.digest?.parse::<ImageDigest>().ok());
            let Some(digest) = digest else {
                return Ok(self.0.images.read().await);
            };
            if let Some(from) = self.only_slow(&digest).await? {
                let bytes = self.bytes_in(&from, &digest).await?;
                // What does not fit beside what is used comes all the same: somebody waits for it.
                self.make_room(bytes).await?;
                self.fetch_copy(&digest, &from, true).await?;
            }
            let held = self.0.images.read().await;
            if self.only_slow(&digest).await?.is_none() {
                self.note_use(&digest).await?;
                return Ok(held);
            }
        }
        let text = format!("image {wanted} leaves the image cache as quickly as it comes; try again when less is made");
        Err(Failure::new(ErrorCode::InUse, text))
    }

    /// A slow store that has these bytes, if no other store has them.
    async fn only_slow(&self, digest: &ImageDigest) -> Result<Option<Store>, Failure> {
        if self.is_at_hand(digest).await.unwrap_or(true) {
            return Ok(None);
        }
        let having = self.having(digest).await?;
        let is_slow = having.iter().all(|store| self.is_slow(store));
        Ok(having.into_iter().next().filter(|_| is_slow))
    }

    /// That something is made from an image, which may be a copy of the cache.
    async fn note_use(&self, digest: &ImageDigest) -> Result<(), Failure> {
        let text = digest.to_string();
        let noted = self.registry().change(move |change| -> Result<_, RegistryError> {
            let Some(mut row) = change.cache_row(&text)?.filter(|row| row.state == CacheState::Cached) else {
                return Ok(false);
            };
            let is_hit = !std::mem::take(&mut row.is_fresh);
            row.hits += u64::from(is_hit);
            row.used_at = change.now();
            change.put_cache_row(&row)?;
            Ok(is_hit)
        });
        if noted.await? {
            self.0.cache.hits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes the copy, if it is not there. Nobody is kept from removing images meanwhile: what came of one that is gone goes again.
    async fn fetch_copy(&self, digest: &ImageDigest, from: &Store, is_used: bool) -> Result<(), Failure> {
        let _turn = self.0.cache.turn(digest).await;
        if self.is_at_hand(digest).await? {
            return Ok(());
        }
        if is_used {
            self.0.cache.misses.fetch_add(1, Ordering::Relaxed);
        }
        let text = digest.to_string();
        let begun = self.registry().change(move |change| -> Result<_, RegistryError> {
            let known = change.cache_row(&text)?;
            let mut row = known.unwrap_or(CacheRow {
                is_wanted: false,
                ..CacheRow::queued(&text, change.now())
            });
            row.state = CacheState::Fetching;
            change.put_cache_row(&row)?;
            Ok(row)
        });
        let row = begun.await?;
        let (progress, _) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let stores = &self.0.context.stores;
        let copied = stores
            .copy(digest, from.name(), stores.default_name(), &progress, &cancel)
            .await
            .map_err(|error| Failure::of(import_code(&error), &error));
        let is_known = {
            // From here until it is written down, nobody removes the bytes for want of a record.
            let _bytes_stay = self.0.images.read().await;
            let failure = copied.as_ref().err().cloned();
            let noted = self.write_down("the end of a copy for the image cache", move |change| {
                change.note_copy(row.clone(), failure.as_ref(), is_used)
            });
            noted.await?
        };
        // It may be one too many.
        self.0.cache.wake.notify_one();
        if !is_known {
            self.drop_unwanted(digest.clone()).await;
            let text = format!("image {digest} was deleted while it was copied into the image cache");
            return Err(Failure::new(ErrorCode::NotFound, text));
        }
        copied.map(drop)
    }

    /// Makes all copies that somebody asked for, one after the other, as far as they fit.
    pub(super) async fn prefetch(&self) {
        let rows = match self.cache_rows().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the queue of the image cache can not be read"
                );
                return;
            }
        };
        let mut queued: Vec<_> = rows.into_iter().filter(|row| row.state == CacheState::Queued).collect();
        queued.sort_by_key(|row| row.queued_at);
        for row in queued {
            if self.0.context.operations.closing() {
                return;
            }
            let Ok(digest) = row.digest.parse::<ImageDigest>() else {
                continue;
            };
            if let Err(failure) = self.prefetch_one(&digest).await {
                tracing::warn!(image = %digest, error = %failure, "an image can not be cached; it is tried again");
                self.note_problem(&digest, failure.detail).await;
            }
        }
    }

    async fn prefetch_one(&self, digest: &ImageDigest) -> Result<(), Failure> {
        let Some(from) = self.slow_store_of(digest).await? else {
            return Err(Failure::new(
                ErrorCode::NotFound,
                "it is in no store that is cached and available",
            ));
        };
        let bytes = self.bytes_in(&from, digest).await?;
        if !self.make_room(bytes).await? {
            let text = format!("{bytes} bytes do not fit into the cache beside what is used");
            return Err(Failure::new(ErrorCode::NoSpace, text));
        }
        self.fetch_copy(digest, &from, false).await
    }

    async fn note_problem(&self, digest: &ImageDigest, problem: String) {
        let text = digest.to_string();
        let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
            match change.cache_row(&text)? {
                // Nobody wants what has no record any more.
                Some(_) if change.images_of(&text)?.is_empty() => change.drop_cache_row(&text),
                Some(mut row) if row.state == CacheState::Queued => {
                    row.problem = Some(problem);
                    change.put_cache_row(&row)
                }
                _ => Ok(()),
            }
        });
        if let Err(error) = noted.await {
            tracing::warn!(
                error = crate::failure::chain(&error),
                "what became of the image cache can not be noted"
            );
        }
    }

    /// Space that an image takes in a store, bytes.
    async fn bytes_in(&self, store: &Store, digest: &ImageDigest) -> Result<u64, Failure> {
        let (store, digest) = (store.clone(), digest.clone());
        self.blocking(move |_| store.image_bytes(&digest)).await
    }
}

impl Change<'_> {
    /// Writes down how a copy for the cache went; false where nobody knows its image any more.
    fn note_copy(&self, mut row: CacheRow, failure: Option<&Failure>, is_used: bool) -> Result<bool, RegistryError> {
        let images = self.images_of(&row.digest)?;
        let is_known = images.iter().any(|image| image.state.state != ImageState::Deleting);
        match failure {
            _ if !is_known => {
                self.drop_cache_row(&row.digest)?;
                return Ok(false);
            }
            None => {
                row.state = CacheState::Cached;
                row.is_wanted = false;
                row.is_fresh = is_used;
                row.used_at = self.now();
                row.problem = None;
            }
            Some(failure) if row.is_wanted => {
                row.state = CacheState::Queued;
                row.problem = Some(failure.detail.clone());
            }
            Some(_) => {
                self.drop_cache_row(&row.digest)?;
                return Ok(true);
            }
        }
        self.put_cache_row(&row)?;
        Ok(true)
    }
}
