//! Looking on while something long goes on, and stopping it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What long operations tell, and ask. Called from their threads, often: it must be quick.
pub trait Watch: Sync {
    /// `done_bytes` of `total_bytes` are dealt with. Neither goes down; the total may grow, as a running guest makes work.
    fn progress(&self, done_bytes: u64, total_bytes: u64);

    /// Whether the operation should give up. It does within one piece of work, and leaves its target half done.
    fn is_stopped(&self) -> bool;
}

/// Nobody looks.
impl Watch for () {
    fn progress(&self, _done_bytes: u64, _total_bytes: u64) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// How far something is, readable from any thread, and a way to stop it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Nothing done of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes dealt with.
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes to deal with.
    pub fn total_bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Asks the operation to give up.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Watch for Progress {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.total.fetch_max(total_bytes, Ordering::Relaxed);
        self.done.fetch_max(done_bytes, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
