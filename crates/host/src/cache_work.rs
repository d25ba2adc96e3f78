//! What is done for the image cache just now: shared by the task that looks after it and those who make machines.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use images::ImageDigest;
use tokio::sync::{Notify, OwnedMutexGuard};

/// What is done for the cache just now.
#[derive(Default)]
pub(crate) struct CacheWork {
    /// There may be too much in it.
    pub(crate) wake: Notify,
    /// Who makes or removes a copy just now, by its bytes.
    turns: Mutex<HashMap<ImageDigest, Arc<tokio::sync::Mutex<()>>>>,
    /// How often a copy was there when it was needed.
    pub(crate) hits: AtomicU64,
    /// How often one had to be made first.
    pub(crate) misses: AtomicU64,
    /// How often one went for want of room.
    pub(crate) evictions: AtomicU64,
}

impl CacheWork {
    /// Waits until nobody else makes or removes the copy of these bytes.
    pub(crate) async fn turn(&self, digest: &ImageDigest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(digest.clone()).or_default())
        };
        turn.lock_owned().await
    }
}
