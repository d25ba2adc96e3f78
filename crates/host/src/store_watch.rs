//! Looks after the stores of images: one whose file system is gone is let go of, and taken back when it is there again.
//!
//! What has to be done in a store that is not there is owed to it: images that were removed meanwhile go when it is back, so that they
//! do not come back with it.

use std::path::PathBuf;
use std::time::Duration;

use api_types::{ErrorCode, EventReason};
use images::{Store, StoreError, Tended};

use crate::failure::{Failure, chain};
use crate::host::Host;
use crate::registry::{About, RegistryError};
use crate::store_notes::{debts, log_recovery, owed};

/// Time between two looks at a store.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Host {
    /// Looks after all stores until the daemon ends.
    pub(crate) fn watch_stores(&self) {
        for store in self.0.context.stores.all() {
            tokio::spawn(self.clone().watch_store(store.clone()));
        }
    }

    async fn watch_store(self, store: Store) {
        if store.ask(Store::check_available).await.is_ok() {
            self.pay(&store).await;
        }
        while !self.0.context.operations.closing() {
            self.0.context.learn_reflinks(&store).await;
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = store.clone();
            let mut look = tokio::task::spawn_blocking(move || looked.tend());
            let found = match tokio::time::timeout(store.settings().answer_within, &mut look).await {
                Ok(found) => found,
                Err(_) => {
                    tracing::error!(store = %store.name(), "an image store does not answer");
                    store.set_silent(true);
                    self.tell(format!(
                        "image store {} does not answer: nobody waits for it until it does",
                        store.name()
                    ))
                    .await;
                    let found = look.await;
                    store.set_silent(false);
                    found
                }
            };
            match found {
                Ok(Tended::AsBefore) => {}
                Ok(Tended::Lost(problem)) => {
                    tracing::error!(store = %store.name(), problem, "an image store is lost");
                    self.tell(format!("image store {} is not available: {problem}", store.name()))
                        .await;
                }
                Ok(Tended::Back(recovery)) => {
                    log_recovery(store.name(), &recovery);
                    self.settle_store(&store).await;
                    self.tell(format!("image store {} is available", store.name())).await;
                    // What could not be imported is tried again at once.
                    self.0.boot.wake.notify_one();
                }
                Err(error) => tracing::error!(store = %store.name(), %error, "a look at an image store was lost"),
            }
        }
    }

    async fn tell(&self, text: String) {
        let told = self
            .registry()
            .change(move |change| change.event(&About::Host, EventReason::ConditionChanged, &text));
        if let Err(error) = told.await {
            tracing::warn!(error = chain(&error), "what became of an image store can not be told");
        }
    }

    /// Removes what is owed to a store that is back, and makes records for images that it has without one.
    async fn settle_store(&self, store: &Store) {
        if !self.pay(store).await {
            // Records would keep what is to go.
            return;
        }
        let listed = store.clone();
        let adopted = match self.blocking(move |_| listed.list()).await {
            Ok(sealed) => self.registry().change(move |change| change.adopt_sealed(&sealed)).await,
            Err(failure) => {
                tracing::warn!(store = %store.name(), error = %failure, "the images of a store can not be listed");
                return;
            }
        };
        if let Err(error) = adopted {
            tracing::warn!(store = %store.name(), error = chain(&error), "the images of a store get no records");
        }
    }

    /// Removes what is owed to a store; whether nothing is any more.
    async fn pay(&self, store: &Store) -> bool {
        let path = owed(&self.0.context.config.state_dir, store.name());
        if !path.exists() {
            return true;
        }
        let _nobody_clones = loop {
            if let Some(nobody_clones) = self.nobody_clones().await {
                break nobody_clones;
            }
            // Those who have waited behind this get their turn.
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if let Err(failure) = self.pay_now(store, path).await {
            tracing::warn!(store = %store.name(), error = %failure, "images that were removed are still in a store; the next start tries again");
            return false;
        }
        true
    }

    async fn pay_now(&self, store: &Store, path: PathBuf) -> Result<(), Failure> {
        let owed = debts(&self.0.context.config.state_dir, store.name());
        let owed = owed.map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
        let kept = self
            .registry()
            .change(|change| -> Result<_, RegistryError> { change.referenced_digests() });
        let kept = kept.await?;
        let store = store.clone();
        self.blocking(move |_| {
            // Everybody who makes something from images waits for this.
            store.ask_now(Store::check_writable)?;
            for digest in owed.difference(&kept) {
                match store.remove(digest) {
                    Ok(()) => tracing::info!(store = %store.name(), image = %digest, "an image that was removed meanwhile goes"),
                    Err(StoreError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let io = |source| StoreError::Io {
                action: "remove",
                path: path.clone(),
                source,
            };
            std::fs::remove_file(&path).map_err(io)
        })
        .await
    }
}
