//! What is done for boot sources just now: shared by the task that looks at them and those who ask something of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use spec::OperationId;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// Polls that go on at the same time.
const POLLS_MAX: usize = 16;

/// What is done for boot sources just now.
pub(crate) struct Tracker {
    /// Something changed: look at all sources again.
    pub(crate) wake: Notify,
    /// Sources that are polled or imported from, and how to call that off.
    working: Mutex<HashMap<String, CancellationToken>>,
    /// Operations that wait for the next poll of a source.
    waiting: Mutex<HashMap<String, Vec<OperationId>>>,
    /// What is wrong with definitions in files, as it was last told.
    pub(crate) problems: Mutex<Vec<String>>,
    /// Turns of polls.
    pub(crate) polls: Semaphore,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            working: Mutex::default(),
            waiting: Mutex::default(),
            problems: Mutex::default(),
            polls: Semaphore::new(POLLS_MAX),
        }
    }
}

impl Tracker {
    /// Sources that are polled or imported from.
    pub(crate) fn working(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations that wait for a source.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<OperationId>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
