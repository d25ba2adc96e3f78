//! What an executor, the handles to it and its operations share.

use std::cell::{Cell, RefCell};
use std::task::Waker;

use crate::engine::Engine;
use crate::flight::{Key, Progress};
use crate::task::Tasks;

/// One executor's insides.
pub(crate) struct Inner {
    pub(crate) engine: RefCell<Engine>,
    pub(crate) tasks: Tasks,
    /// Tasks that are to run to their end: see [`crate::kept`].
    pub(crate) kept: Cell<usize>,
    /// The executor has ended, or is about to.
    pub(crate) closed: Cell<bool>,
}

impl Inner {
    /// How the operation is doing; `waker` is called when it is over.
    pub(crate) fn progress(&self, key: Key, waker: &Waker) -> Option<Progress> {
        self.engine.borrow_mut().flights.progress(key, waker)
    }

    /// Asks the kernel to give the operation up, unless the executor has ended.
    pub(crate) fn cancel(&self, key: Key) {
        if !self.closed.get() {
            // Failing means that the kernel has no memory now: the operation then simply goes on.
            let _ = self.engine.borrow_mut().cancel(key);
        }
    }

    /// The future of the operation is gone.
    pub(crate) fn abandon(&self, key: Key) {
        let (cancel, cargo) = self.engine.borrow_mut().flights.abandon(key);
        drop(cargo);
        if cancel {
            self.cancel(key);
        }
    }
}
