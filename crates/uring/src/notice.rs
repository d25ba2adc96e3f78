//! Which tasks are ready, and how another thread gets the executor out of its wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use rustix::event::{EventfdFlags, eventfd};

/// The ready list of one executor, shared with every waker of its tasks.
pub(crate) struct Notice {
    ready: Mutex<VecDeque<u64>>,
    /// Set while the executor is about to wait or waits in the kernel; whoever clears it owes it a ring of `event`.
    sleeping: AtomicBool,
    event: OwnedFd,
}

impl Notice {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            ready: Mutex::default(),
            sleeping: AtomicBool::new(false),
            event,
        })
    }

    /// Readable once somebody wakes a sleeping executor.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes [`Notice::event`] silent again.
    pub(crate) fn silence(&self) {
        // Fails only if it is silent already.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }

    fn push(&self, task: u64) {
        self.ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(task);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only if the counter is full: then it is readable anyway.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Moves what is ready into `batch`.
    pub(crate) fn take(&self, batch: &mut VecDeque<u64>) {
        batch.append(&mut self.ready.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Announces a wait. False if there is something to do instead; from true until [`Notice::end_wait`] a wake-up rings.
    pub(crate) fn begin_wait(&self) -> bool {
        // The store comes before the look, a waker's push before its look at `sleeping`: one of the two sees the other.
        self.sleeping.store(true, Ordering::SeqCst);
        let idle = self.ready.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !idle {
            self.end_wait();
        }
        idle
    }

    pub(crate) fn end_wait(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// Puts one task on the ready list, at most once until it runs.
pub(crate) struct TaskWaker {
    notice: Arc<Notice>,
    task: u64,
    queued: AtomicBool,
}

impl TaskWaker {
    pub(crate) fn new(notice: Arc<Notice>, task: u64) -> Self {
        Self {
            notice,
            task,
            queued: AtomicBool::new(false),
        }
    }

    /// The task is about to run: wake-ups from now on count again.
    pub(crate) fn running(&self) {
        self.queued.store(false, Ordering::SeqCst);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.notice.push(self.task);
        }
    }
}
