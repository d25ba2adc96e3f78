//! Moves under way in this process: who follows them, how to cancel them, how far they are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_types::MigrationFigures;
use control::{MigrationKey, MigrationNews};
use spec::{MigrationId, VmId};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::config::MigrationConfig;

/// What a move hears of its machine process. The end of it is the end of the process.
pub(crate) type News = mpsc::UnboundedReceiver<MigrationNews>;

/// Moves under way, and turns for them.
pub(crate) struct LiveMoves {
    moves: Mutex<HashMap<MigrationId, Live>>,
    followers: Mutex<HashMap<VmId, Follower>>,
    /// Turns for moves in either direction.
    pub(crate) total: Arc<Semaphore>,
    /// Turns for moves away from here.
    pub(crate) outbound: Arc<Semaphore>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

struct Live {
    cancel: CancellationToken,
    figures: Option<MigrationFigures>,
}

struct Follower {
    key: MigrationKey,
    sender: mpsc::UnboundedSender<MigrationNews>,
}

impl LiveMoves {
    pub(crate) fn new(config: &MigrationConfig) -> Self {
        Self {
            moves: Mutex::default(),
            followers: Mutex::default(),
            total: Arc::new(Semaphore::new(config.total_max)),
            outbound: Arc::new(Semaphore::new(config.outbound_max)),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// From now on `id` is under way, and given up when what is returned is cancelled.
    pub(crate) fn begin(&self, id: MigrationId) -> CancellationToken {
        let cancel = CancellationToken::new();
        let live = Live {
            cancel: cancel.clone(),
            figures: None,
        };
        self.moves().insert(id, live);
        cancel
    }

    /// A move away from here is over, well or not.
    pub(crate) fn end(&self, id: MigrationId, well: bool) {
        self.moves().remove(&id);
        let counter = if well { &self.succeeded } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A move to here is over.
    pub(crate) fn forget(&self, id: MigrationId) {
        self.moves().remove(&id);
    }

    /// How many moves away from here succeeded and failed since the daemon started.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.succeeded.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }

    /// Asks for a move to be given up; false when none is under way.
    pub(crate) fn cancel(&self, id: MigrationId) -> bool {
        let moves = self.moves();
        let Some(live) = moves.get(&id) else { return false };
        live.cancel.cancel();
        true
    }

    pub(crate) fn note(&self, id: MigrationId, figures: MigrationFigures) {
        if let Some(live) = self.moves().get_mut(&id) {
            live.figures = Some(figures);
        }
    }

    pub(crate) fn figures(&self, id: MigrationId) -> Option<MigrationFigures> {
        self.moves().get(&id)?.figures.clone()
    }

    /// What the machine's process tells of this move from now on.
    pub(crate) fn follow(&self, vm: VmId, key: MigrationKey) -> News {
        let (sender, news) = mpsc::unbounded_channel();
        self.followers().insert(vm, Follower { key, sender });
        news
    }

    /// The move that is followed.
    pub(crate) fn followed(&self, vm: VmId) -> Option<MigrationKey> {
        self.followers().get(&vm).map(|follower| follower.key)
    }

    /// The machine's process told this.
    pub(crate) fn told(&self, vm: VmId, news: MigrationNews) {
        if let Some(follower) = self.followers().get(&vm) {
            let _ = follower.sender.send(news); // Whoever followed may be done.
        }
    }

    /// The move is over; another one of the same machine may be followed by now.
    pub(crate) fn unfollow(&self, vm: VmId, key: &MigrationKey) {
        self.followers()
            .retain(|one, follower| *one != vm || follower.key != *key);
    }

    /// The machine's process is gone.
    pub(crate) fn silent(&self, vm: VmId) {
        self.followers().remove(&vm);
    }

    fn moves(&self) -> MutexGuard<'_, HashMap<MigrationId, Live>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<VmId, Follower>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
