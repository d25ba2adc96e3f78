//! The task that looks at all boot sources, whenever something changed and when the next poll is due.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use api_types::ErrorCode;
use boot_sources::STORE_DEFAULT;
use image_catalog::ImageId;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::definitions::overlay;
use super::settle::{Todo, gate, settle};
use super::work::place_of;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, ImageRow, RegistryError};

/// Longest time between two looks: definitions in files are read again this often, and a clock that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Shortest time between two looks.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// How many times longer than a look took the next one is put off: where there are many sources, requests and polls come first.
const LOOK_SHARE: u32 = 4;

impl Host {
    /// Looks at all boot sources until the daemon ends.
    pub(crate) async fn track_boot_sources(self) {
        while !self.0.context.operations.closing() {
            let begun = Instant::now();
            let wait = match self.look_at_boot_sources().await {
                Ok(next) => next.map_or(LOOK_EVERY, |due| until(due).min(LOOK_EVERY)),
                Err(failure) => {
                    tracing::warn!(error = %failure, "boot sources can not be looked at; it is tried again");
                    LOOK_EVERY
                }
            };
            let took = begun.elapsed();
            tokio::select! {
                () = self.0.boot.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            tokio::time::sleep(LOOK_AT_MOST_EVERY.max(took * LOOK_SHARE)).await;
        }
    }

    /// One look, and what follows from it. Returns when the next poll is due.
    async fn look_at_boot_sources(&self) -> Result<Option<Timestamp>, Failure> {
        let (files, _) = self.file_definitions().await?;
        let gate = gate(self.0.context.config.boot_sources.system_sources);
        let working: HashSet<String> = self.0.boot.working().keys().cloned().collect();
        let looked = self.registry().change(move |change| -> Result<Todo, Failure> {
            let rows = change.boot_sources()?;
            let (defined, _) = overlay(files, &rows);
            settle(change, &defined, &rows, gate, &working)
        });
        let todo = looked.await?;
        for name in todo.cancel {
            if let Some(token) = self.0.boot.working().get(&name) {
                token.cancel();
            }
        }
        for (source, step) in todo.work {
            let cancel = CancellationToken::new();
            let name = source.name.to_string();
            if self.0.boot.working().insert(name, cancel.clone()).is_none() {
                tokio::spawn(self.clone().work_on(source, step, cancel));
            }
        }
        for id in todo.remove {
            if let Err(failure) = self.remove_import(id).await {
                tracing::warn!(image = %id, error = %failure, "an old import can not be removed; it is tried again");
            }
        }
        Ok(todo.next)
    }

    /// Removes an import; what is in another store by now also leaves the one it was in before.
    async fn remove_import(&self, id: ImageId) -> Result<(), Failure> {
        let left = self.registry().change(move |change| change.left_behind(id)).await?;
        self.delete_image(&id.to_string(), None).await?;
        let Some(Left { heir, store }) = left else {
            return Ok(());
        };
        match self.displace_image(&heir, &store).await {
            Err(failure) if failure.code == ErrorCode::InUse => {
                tracing::info!(image = heir, store, error = %failure, "the image stays in its former store, too");
                Ok(())
            }
            Err(failure) if failure.code != ErrorCode::NotFound => Err(failure),
            _ => Ok(()),
        }
    }
}

/// Bytes that a removed import would leave in a store.
struct Left {
    /// Id of an image that has the same bytes, and shall have them elsewhere.
    heir: String,
    /// The store.
    store: String,
}

impl Change<'_> {
    /// What an import would leave behind: nothing unless all who have the same bytes came from the same source into other stores.
    fn left_behind(&self, id: ImageId) -> Result<Option<Left>, RegistryError> {
        let Some(row) = self.image(&id.to_string())? else {
            return Ok(None);
        };
        let store_of = |row: &ImageRow| {
            let place = row.import.as_ref().and_then(|job| place_of(&job.from));
            place.map(|place| place.store.unwrap_or_else(|| STORE_DEFAULT.to_owned()))
        };
        let (Some(digest), Some(store), Some(_)) = (&row.digest, store_of(&row), &row.boot_source) else {
            return Ok(None);
        };
        let mut heirs = self.images_of(digest)?;
        heirs.retain(|other| other.id != id);
        let is_elsewhere =
            |heir: &ImageRow| heir.boot_source == row.boot_source && store_of(heir).is_some_and(|other| other != store);
        let heir = heirs.first().filter(|_| heirs.iter().all(is_elsewhere));
        Ok(heir.map(|heir| Left {
            heir: heir.id.to_string(),
            store,
        }))
    }
}

fn until(due: Timestamp) -> Duration {
    let left = due.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or(Duration::ZERO)
}
