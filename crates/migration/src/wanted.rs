//! Pages that a started machine waits for.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

type Notify = Box<dyn Fn() + Send>;

/// Where a machine says which missing pages somebody waits for. Clones are the same.
#[derive(Clone, Default)]
pub struct Wanted {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    pages: BTreeSet<u64>,
    fresh: Vec<u64>,
    notify: Option<Notify>,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted")
    }
}

impl Wanted {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody waits for this page. Never blocks for long; a page may be named more than once.
    pub fn page(&self, page: u64) {
        self.with(|state| {
            if state.pages.insert(page) {
                state.fresh.push(page);
                if let Some(notify) = &state.notify {
                    notify();
                }
            }
        });
    }

    /// Whom to tell from now on. All that are still waited for count as fresh again.
    pub(crate) fn attach(&self, notify: Notify) {
        self.with(|state| {
            state.fresh = state.pages.iter().copied().collect();
            state.notify = Some(notify);
        });
    }

    /// The pages named since the last call.
    pub(crate) fn take_fresh(&self) -> Vec<u64> {
        self.with(|state| std::mem::take(&mut state.fresh))
    }

    /// The page is there.
    pub(crate) fn placed(&self, page: u64) {
        self.with(|state| {
            state.pages.remove(&page);
        });
    }
}
