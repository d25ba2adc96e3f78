//! A bell that any thread rings and one future hears.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Wakes a future on an executor from any other thread: pause, stop, "there is something in your mailbox".
///
/// Rings are not counted: several before the hearing are one. A ring before anybody listens is kept. One listener at a time;
/// a second takes the place of the first.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rung: bool,
    listener: Option<Waker>,
}

impl Bell {
    /// A silent bell.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rings: never blocks, callable from any thread.
    pub fn ring(&self) {
        let listener = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.rung = true;
            state.listener.take()
        };
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// Waits for a ring and takes it.
    pub fn rung(&self) -> impl Future<Output = ()> + Unpin + '_ {
        poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.rung {
                state.rung = false;
                state.listener = None;
                return Poll::Ready(());
            }
            match &mut state.listener {
                Some(listener) => listener.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
    }
}
