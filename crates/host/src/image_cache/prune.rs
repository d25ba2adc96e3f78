//! Copies go: those that are too many, and those that somebody takes out.

use std::sync::atomic::Ordering;

use images::{ImageDigest, StoreError};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{CacheState, RegistryError};

impl Host {
    /// Removes copies until they take no more than they may, those that were not used for longest first.
    pub async fn prune_cache(&self) -> Result<(), Failure> {
        self.make_room(0).await.map(drop)
    }

    /// Removes copies until `bytes` more fit; whether they do.
    pub(super) async fn make_room(&self, bytes: u64) -> Result<bool, Failure> {
        let max = self.0.context.config.images.cache.max_bytes;
        let rows = self.cache_rows().await?;
        let mut copies = Vec::new();
        for row in rows.into_iter().filter(|row| row.state == CacheState::Cached) {
            let size = self.copy_bytes(&row).await?.unwrap_or(0);
            copies.push((row, size));
        }
        if bytes > max {
            // Nothing goes for what never fits.
            return Ok(false);
        }
        let mut used: u64 = copies.iter().map(|(_, size)| size).sum();
        for (row, size) in copies {
            if used.saturating_add(bytes) <= max {
                return Ok(true);
            }
            let Ok(digest) = row.digest.parse::<ImageDigest>() else {
                continue;
            };
            let _turn = self.0.cache.turn(&digest).await;
            match self.evict(&digest).await? {
                None => {
                    used = used.saturating_sub(size);
                    self.0.cache.evictions.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(image = %digest, "a copy leaves the image cache");
                }
                Some(reason) => tracing::debug!(image = %digest, reason, "a copy stays in the image cache"),
            }
        }
        Ok(used.saturating_add(bytes) <= max)
    }

    /// Removes a copy, and what is known of it; or tells why it stays. The caller has the turn of these bytes.
    pub(super) async fn evict(&self, digest: &ImageDigest) -> Result<Option<String>, Failure> {
        let Some(_nobody_clones) = self.nobody_clones().await else {
            return Ok(Some("something is being made from an image just now".to_owned()));
        };
        let text = digest.to_string();
        let known = self.registry().change(move |change| -> Result<_, RegistryError> {
            let mut users = change.image_users_in(&text, None)?;
            users.extend(change.image_volumes_in(&text, None)?);
            Ok((change.cache_row(&text)?, users))
        });
        let (row, users) = known.await?;
        match row.map(|row| row.state) {
            None => return Ok(None),
            Some(CacheState::Queued) => {}
            Some(CacheState::Fetching | CacheState::Cached) if !users.is_empty() => {
                return Ok(Some(format!("it is used by {}", users.join(", "))));
            }
            Some(CacheState::Fetching | CacheState::Cached) => {
                let own = self.0.context.store.name();
                if self.having(digest).await?.iter().all(|store| store.name() == own) {
                    return Ok(Some("no other store that is available has the image".to_owned()));
                }
                let gone = digest.clone();
                self.blocking(move |host| match host.0.context.store.remove(&gone) {
                    Ok(()) | Err(StoreError::NotFound(_)) => Ok(()),
                    Err(error) => Err(error),
                })
                .await?;
            }
        }
        let text = digest.to_string();
        self.registry()
            .change(move |change| change.drop_cache_row(&text))
            .await?;
        Ok(None)
    }

    /// Settles what an earlier daemon was about when it ended.
    pub(super) async fn settle_cache(&self) -> Result<(), Failure> {
        let rows = self.cache_rows().await?;
        for mut row in rows.into_iter().filter(|row| row.state != CacheState::Queued) {
            let Ok(digest) = row.digest.parse::<ImageDigest>() else {
                continue;
            };
            let _turn = self.0.cache.turn(&digest).await;
            let is_there = self.is_at_hand(&digest).await?;
            let was = row.state;
            let settled = self.registry().change(move |change| -> Result<(), RegistryError> {
                // Somebody may have been quicker.
                if change.cache_row(&row.digest)?.is_none_or(|now| now.state != was) {
                    return Ok(());
                }
                match (is_there, row.is_wanted) {
                    (true, _) => row.state = CacheState::Cached,
                    (false, true) => row.state = CacheState::Queued,
                    (false, false) => return change.drop_cache_row(&row.digest),
                }
                change.put_cache_row(&row)
            });
            settled.await?;
        }
        Ok(())
    }
}
