//! Who sends uploads just now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Who sends just now.
#[derive(Default)]
pub(crate) struct Senders {
    all: Mutex<HashMap<String, Sender>>,
    /// Held while an upload begins.
    making: Mutex<()>,
}

/// Somebody who sends. A new one for the same upload takes its place: it may not have noticed that its connection is gone.
#[derive(Clone, Default)]
pub(crate) struct Sender {
    pub(crate) stop: CancellationToken,
    /// Held while something is written.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
}

impl Senders {
    /// One upload begins at a time.
    pub(crate) fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops whoever sends, and becomes the one who does.
    pub(crate) fn take_over(&self, id: &str) -> Sender {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(id).unwrap_or_default();
        before.stop.cancel();
        let sender = Sender {
            stop: CancellationToken::new(),
            turn: before.turn,
        };
        all.insert(id.to_owned(), sender.clone());
        sender
    }

    /// Nobody sends any more.
    pub(crate) fn forget(&self, id: &str) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
