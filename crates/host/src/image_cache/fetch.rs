//! Copies are made: on first use, or because somebody asked for them.

use std::sync::atomic::Ordering;

use api_types::ErrorCode;
use image_catalog::ImageAction;
use images::{ImageDigest, ImageRecord, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalogue::intake::import_code;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{CacheRow, CacheState, ImageRow, RegistryError};

impl Host {
    /// Makes a copy of an image that a machine or volume is to be made from, if it is in a slow store alone. Not to be called by who
    /// keeps images from being removed: room may have to be made.
    pub(crate) async fn prepare_image(&self, wanted: &str) -> Result<(), Failure> {
        let name = wanted.to_owned();
        let found = self.registry().change(move |change| change.find_image(&name)).await?;
        // What can not be used, or is damaged, is refused by who makes something from it.
        let usable = found.filter(|row| row.state.state.may(ImageAction::Boot));
        let digest = usable.and_then(|row| row.digest?.parse::<ImageDigest>().ok());
        let Some(digest) = digest else { return Ok(()) };
        if self.is_at_hand(&digest).await.unwrap_or(true) {
            return Ok(());
        }
        let Some(from) = self.slow_store_of(&digest).await? else {
            return Ok(());
        };
        let bytes = self.bytes_in(&from, &digest).await?;
        // What does not fit beside what is used comes all the same: somebody waits for it.
        self.make_room(bytes).await?;
        let _image_stays = self.0.images.read().await;
        self.fetch_copy(&digest, &from, true).await
    }

    /// Sees to it that an image is in the default store, from which machines and volumes are made.
    pub(crate) async fn bring_to_hand(&self, row: &ImageRow, sealed: &ImageRecord) -> Result<(), Failure> {
        let digest = &sealed.digest;
        if !self.is_at_hand(digest).await? {
            let Some(from) = self.slow_store_of(digest).await? else {
                let text = format!(
                    "image {} is not in the default store, from which machines and volumes are made: karat image copy {} {}",
                    row.name(),
                    row.name(),
                    self.0.context.store.name()
                );
                return Err(Failure::new(ErrorCode::WrongState, text));
            };
            self.fetch_copy(digest, &from, true).await?;
        }
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

    /// Makes the copy, if it is not there. The image stays where it is meanwhile: the caller sees to that.
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
        let mut row = begun.await?;
        let (progress, _) = watch::channel(images::Progress::default());
        let cancel = CancellationToken::new();
        let stores = &self.0.context.stores;
        let copied = stores
            .copy(digest, from.name(), stores.default_name(), &progress, &cancel)
            .await
            .map_err(|error| Failure::of(import_code(&error), &error));
        let failure = copied.as_ref().err().cloned();
        let noted = self.registry().change(move |change| -> Result<(), RegistryError> {
            match failure {
                None => {
                    row.state = CacheState::Cached;
                    row.is_wanted = false;
                    row.is_fresh = is_used;
                    row.used_at = change.now();
                    row.problem = None;
                }
                Some(failure) if row.is_wanted => {
                    row.state = CacheState::Queued;
                    row.problem = Some(failure.detail);
                }
                Some(_) => return change.drop_cache_row(&row.digest),
            }
            change.put_cache_row(&row)
        });
        noted.await?;
        // It may be one too many.
        self.0.cache.wake.notify_one();
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
        let _image_stays = self.0.images.read().await;
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
