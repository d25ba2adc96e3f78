//! Copies of an image to further stores, one store after the other.
//!
//! Which are left, and which failed, is in the image's record: [`image_catalog::Placement`] decides what follows from each. Nothing is
//! locked while bytes are copied: what came for an image that was deleted meanwhile goes again before anybody can find it.

use api_types::{ErrorCode, EventReason, ImageImport, OperationKind, OperationPhase};
use image_catalog::{ImageAction, ImageId, ImageState, Placement, PlacementError, StoreWish, Stores};
use images::{ImageDigest, ImportError, Store, StoreError, StoreName};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{no_image, not_allowed, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::operations::Worker;
use crate::registry::{About, Change, ImageRow, OperationRecord, RegistryError};

/// What is left to do after a store.
enum Left {
    /// Nothing: the image is gone, or nobody waits for further stores.
    Gone,
    /// The next store; before that, bytes go from these again.
    TakeBack(Vec<String>),
}

impl Host {
    /// Begins to copy an image to further stores.
    pub(super) async fn copy_image(&self, wanted: &str, from: &ImageImport) -> Result<OperationRecord, Failure> {
        source::check(&self.0.context, from)?;
        let ImageImport::Copy {
            all_stores,
            allow_failure,
            ..
        } = from
        else {
            return Err(Failure::new(ErrorCode::Internal, "this is no copy"));
        };
        let allow_failure = allow_failure.unwrap_or(true);
        let names = source::stores(&self.0.context, from)?.into_iter();
        let wish = match all_stores {
            true => StoreWish::All,
            false => StoreWish::Named(names.map(String::from).collect()),
        };
        let name = wanted.to_owned();
        let (_, digest) = self.registry().change(move |change| change.placed(&name)).await?;
        let having: Vec<_> = self.having(&digest).await?;
        let having: Vec<_> = having.iter().map(|store| store.name().to_string()).collect();
        let (all, default) = self.store_names();
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let (mut row, digest) = change.placed(&name)?;
            if row.placement.importing_to_stores.is_empty() {
                // What is in the default store as a copy of the cache can be made to stay there.
                let is_cached = change.cache_row(&digest.to_string())?.is_some();
                let having = having.into_iter();
                row.placement.stores = having.filter(|store| !(is_cached && *store == default)).collect();
            }
            let stores = Stores {
                all: &all,
                default: &default,
            };
            let next = row.placement.copy(&wish, stores, allow_failure);
            row.placement = next.map_err(|error| misplaced(row.name(), &error))?;
            change.update_image(&mut row)?;
            let id = OperationId::random();
            let operation = change.begin_operation(id, OperationKind::ImageCopy, row.name())?;
            Ok((row.id, digest, operation))
        });
        let (image, digest, operation) = begun.await?;
        let (id, cancel) = (operation.id, CancellationToken::new());
        let (progress, watched) = watch::channel(images::Progress::default());
        let operations = &self.0.context.operations;
        operations.begin(id, Worker::Pull(watched, cancel.clone()));
        let host = self.clone();
        tokio::spawn(async move {
            let copied = host.spread(image, &digest, &progress, &cancel).await;
            host.note_copied(id, &digest, copied).await;
            host.0.context.operations.end(id);
        });
        Ok(operation)
    }

    /// Writes down in which stores an import is to end.
    pub(super) async fn note_targets(&self, image: ImageId, from: &ImageImport) {
        let targets = source::stores(&self.0.context, from).unwrap_or_default();
        let targets: Vec<_> = targets.into_iter().map(String::from).collect();
        let wish = match targets.is_empty() {
            true => StoreWish::Default,
            false => StoreWish::Named(targets),
        };
        let allow_failure = from.options().and_then(|options| options.allow_failure).unwrap_or(true);
        let (all, default) = self.store_names();
        let noted = self.registry().change(move |change| -> Result<(), Failure> {
            let stores = Stores {
                all: &all,
                default: &default,
            };
            let Some(mut row) = change.image(&image.to_string())? else {
                return Ok(());
            };
            let placement = Placement::import(&wish, stores, allow_failure);
            row.placement = placement.map_err(|error| misplaced(row.name(), &error))?;
            Ok(change.update_image(&mut row)?)
        });
        if let Err(failure) = noted.await {
            tracing::warn!(error = %failure, "the stores of an import can not be noted");
        }
    }

    /// All stores, and the default one.
    fn store_names(&self) -> (Vec<String>, String) {
        let context = &self.0.context;
        let all = context.stores.all().map(|store| store.name().to_string());
        (all.collect(), context.store.name().to_string())
    }

    /// Copies to every store that the record still names. What some did not take is an error only where that is not allowed, or where
    /// none took it.
    async fn spread(
        &self,
        image: ImageId,
        digest: &ImageDigest,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let turn = tokio::select! {
            turn = self.0.pulls.acquire() => turn.ok(),
            () = cancel.cancelled() => None,
        };
        let (mut placed, mut first_failure) = (false, None);
        loop {
            let next = self.write_down("what is left of a copy", move |change| change.next_store(image));
            let Some((store, must_all)) = next.await? else {
                return match first_failure {
                    Some(failure) if !placed => Err(failure),
                    _ => Ok(()),
                };
            };
            if turn.is_none() || cancel.is_cancelled() {
                self.call_off(image, digest).await?;
                return Err(called_off());
            }
            let copied = self.copy_to(digest, &store, progress, cancel).await;
            if cancel.is_cancelled() && copied.is_err() {
                continue;
            }
            let failed = copied.as_ref().err().cloned();
            let left = {
                // From here until it is written down, nobody removes the bytes for want of a record.
                let _bytes_stay = self.0.images.read().await;
                if copied.is_ok() && !self.is_in(&store, digest).await {
                    // An earlier copy that failed as a whole has taken them back.
                    continue;
                }
                let digest = digest.to_string();
                let noted = self.write_down("the end of a copy", move |change| {
                    change.note_store(image, &digest, &store, copied.as_ref())
                });
                noted.await?
            };
            match left {
                Left::Gone => {
                    self.drop_unwanted(digest.clone()).await;
                    return Err(called_off());
                }
                Left::TakeBack(stores) => self.take_back(digest, stores).await?,
            }
            match failed {
                None => placed = true,
                Some(failure) if must_all => return Err(failure),
                Some(failure) => drop(first_failure.get_or_insert(failure)),
            }
        }
    }

    /// Whether these bytes are in a store.
    async fn is_in(&self, store: &str, digest: &ImageDigest) -> bool {
        let store = store.parse().ok().and_then(|name| self.0.context.stores.get(&name));
        let Some(store) = store else { return false };
        let digest = digest.clone();
        store.ask(move |store| store.get(&digest).map(drop)).await.is_ok()
    }

    /// Whether the store had it before.
    async fn copy_to(
        &self,
        digest: &ImageDigest,
        target: &str,
        progress: &watch::Sender<images::Progress>,
        cancel: &CancellationToken,
    ) -> Result<bool, Failure> {
        let target: StoreName = target
            .parse()
            .map_err(|error: images::BadStoreName| Failure::of(ErrorCode::Internal, &error))?;
        let having = self.having(digest).await?;
        let origin = having.first().ok_or_else(|| {
            let text = format!("no store that can be read has the bytes of {digest}: import it again");
            Failure::new(ErrorCode::HostLacks, text)
        })?;
        let stores = &self.0.context.stores;
        let copied = stores.copy(digest, origin.name(), &target, progress, cancel).await;
        let copied = copied.map_err(|error| match error {
            ImportError::Cancelled => called_off(),
            error => Failure::of(super::intake::import_code(&error), &error),
        });
        copied.map(|copied| copied.was_there)
    }

    /// Nobody wants the rest any more.
    async fn call_off(&self, image: ImageId, digest: &ImageDigest) -> Result<(), Failure> {
        let stopped = self.write_down(
            "that a copy was called off",
            move |change| -> Result<_, RegistryError> {
                let Some(mut row) = change.image(&image.to_string())? else {
                    return Ok(Vec::new());
                };
                let take_back = row.placement.call_off();
                change.update_image(&mut row)?;
                Ok(take_back)
            },
        );
        let stores = stopped.await?;
        self.take_back(digest, stores).await
    }

    /// Ends what an earlier daemon was at: stores that were left did not get the image.
    pub(crate) fn end_copies(&self, rows: &[ImageRow]) {
        let cut_off = rows
            .iter()
            .filter(|row| row.state.state != ImageState::Importing && !row.placement.importing_to_stores.is_empty());
        for row in cut_off.cloned() {
            let host = self.clone();
            tokio::spawn(async move {
                let Some(Ok(digest)) = row.digest.as_deref().map(str::parse::<ImageDigest>) else {
                    return;
                };
                if let Err(failure) = host.cut_off(row.id, &digest).await {
                    tracing::warn!(image = row.name(), error = %failure, "a copy that was cut off is not settled");
                }
            });
        }
    }

    async fn cut_off(&self, image: ImageId, digest: &ImageDigest) -> Result<(), Failure> {
        let settled = self.write_down("that a copy was cut off", move |change| -> Result<_, RegistryError> {
            let Some(mut row) = change.image(&image.to_string())? else {
                return Ok(Vec::new());
            };
            let mut take_back = Vec::new();
            while let Some(store) = row.placement.importing_to_stores.first().cloned() {
                take_back.extend(row.placement.failed(&store).take_back);
            }
            change.update_image(&mut row)?;
            Ok(take_back)
        });
        let stores = settled.await?;
        self.take_back(digest, stores).await
    }

    /// Removes bytes from stores that got them by a copy that failed as a whole, unless somebody counts on them there by now: another
    /// image, this one after a later copy, or who was made from them.
    async fn take_back(&self, digest: &ImageDigest, stores: Vec<String>) -> Result<(), Failure> {
        if stores.is_empty() {
            return Ok(());
        }
        let _nobody_clones = self.exclusively().await;
        let text = digest.to_string();
        let default = self.0.context.store.name().to_string();
        let candidates = stores.clone();
        let wanted = self.registry().change(move |change| -> Result<_, RegistryError> {
            let rows = change.images_of(&text)?.into_iter();
            let mut keep: Vec<String> = rows.flat_map(|row| row.placement.stores).collect();
            for name in candidates {
                let store = (name != default).then_some(name.as_str());
                let users = change.image_users_in(&text, store)?;
                if !users.is_empty() || !change.image_volumes_in(&text, store)?.is_empty() {
                    keep.push(name);
                }
            }
            Ok(keep)
        });
        let keep = wanted.await?;
        for name in stores.iter().filter(|name| !keep.contains(name)) {
            let store = name
                .parse()
                .ok()
                .and_then(|name| self.0.context.stores.get(&name).cloned());
            let Some(store) = store else { continue };
            let digest = digest.clone();
            self.blocking(move |_| {
                // Everybody who makes something from images waits for this.
                let there = store.ask_now(Store::check_writable);
                match there.and_then(|()| store.remove(&digest)) {
                    Err(StoreError::NotFound(_)) => Ok(()),
                    other => other,
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn note_copied(&self, id: OperationId, digest: &ImageDigest, copied: Result<(), Failure>) {
        let text = digest.to_string();
        let noted = self.write_down("the end of a copy", move |change| match &copied {
            Ok(()) => change.end_operation(id, OperationPhase::Succeeded, Ok(Some(&text))),
            Err(failure) => {
                let phase = match failure.code {
                    ErrorCode::Cancelled => OperationPhase::Cancelled,
                    _ => OperationPhase::Failed,
                };
                change.end_operation(id, phase, Err(failure))
            }
        });
        if let Err(failure) = noted.await {
            tracing::error!(image = %digest, error = %failure, "the next daemon ends the operation");
        }
    }
}

impl Change<'_> {
    /// An image whose bytes may be copied, and their digest.
    pub(super) fn placed(&self, wanted: &str) -> Result<(ImageRow, ImageDigest), Failure> {
        let row = self.find_image(wanted)?.ok_or_else(|| no_image(wanted))?;
        let allowed = row.state.state.take(ImageAction::Place);
        allowed.map_err(|error| not_allowed(row.name(), &error))?;
        match row.digest.as_deref().map(str::parse) {
            Some(Ok(digest)) => Ok((row, digest)),
            _ => {
                let text = format!("image {} has no data", row.name());
                Err(Failure::new(ErrorCode::WrongState, text))
            }
        }
    }

    /// The store that an image is to be copied to next, and whether none may fail.
    fn next_store(&self, image: ImageId) -> Result<Option<(String, bool)>, RegistryError> {
        let found = self.image(&image.to_string())?;
        Ok(found.and_then(|row| {
            let next = row.placement.importing_to_stores.first().cloned();
            next.map(|next| (next, !row.placement.may_fail()))
        }))
    }

    /// Writes down how a store fared.
    fn note_store(
        &self,
        image: ImageId,
        digest: &str,
        store: &str,
        copied: Result<&bool, &Failure>,
    ) -> Result<Left, RegistryError> {
        let row = self.image(&image.to_string())?;
        let Some(mut row) = row.filter(|row| row.state.state != ImageState::Deleting) else {
            return Ok(Left::Gone);
        };
        let (placed, text) = match copied {
            Ok(was_there) => {
                if store == StoreName::default().to_string() {
                    // It is there to stay.
                    self.drop_cache_row(digest)?;
                }
                let text = format!("image {} is in store {store}", row.name());
                (row.placement.succeeded(store, *was_there), text)
            }
            Err(failure) => {
                let text = format!("image {} did not get into store {store}: {failure}", row.name());
                (row.placement.failed(store), text)
            }
        };
        self.update_image(&mut row)?;
        let about = About::Image(digest, Some(row.name()));
        self.event(&about, EventReason::ConditionChanged, &text)?;
        Ok(Left::TakeBack(placed.take_back))
    }
}

/// Why it can not be copied so.
pub(super) fn misplaced(name: &str, error: &PlacementError) -> Failure {
    let text = format!("image {name}: {error} ({})", error.code());
    let code = match error {
        PlacementError::AlreadyThere(_) => ErrorCode::StoreHasImage,
        PlacementError::Busy => ErrorCode::CopyInProgress,
        PlacementError::StoreUnknown(_) | PlacementError::NoStore | PlacementError::StoreTwice(_) => {
            return Failure::refused_field("the image can not be copied", "stores", text);
        }
        PlacementError::NotInDefault(_) | PlacementError::LastCopy(_) => ErrorCode::WrongState,
        PlacementError::NotThere(_) => ErrorCode::NotFound,
    };
    Failure::new(code, text)
}

fn called_off() -> Failure {
    Failure::new(ErrorCode::Cancelled, "the copy was called off")
}

#[cfg(test)]
#[path = "spread_tests.rs"]
mod tests;
