//! The executor: one thread, one ring, one turn after another.
//!
//! ```text
//!            ┌─────────────────────────────────────────────────────────────┐
//!            ▼                                                             │
//!   poll what is ready ──▶ enter the kernel once: submit all ──▶ wake whom completions concern
//!            │             (wait there if nothing is ready)
//!            └─ main future done ──▶ block_on returns; tasks keep their state
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::action::Wait;
use crate::engine::{Engine, Means};
use crate::inner::Inner;
use crate::notice::{Notice, TaskWaker};
use crate::offload;
use crate::ring::Ring;
use crate::setup::{self, EngineChoice, SetupError};
use crate::task::{MAIN, Tasks};

/// How long an executor that ends runs for operations that go on by themselves, unless the kernel keeps one for longer.
const KEPT_LIMIT: Duration = Duration::from_secs(30);

/// The kernel gave up on the ring: nothing on it can be waited for any more.
#[derive(Debug, thiserror::Error)]
#[error("io_uring_enter failed: the executor can not go on")]
pub struct RingError(#[source] io::Error);

/// Runs futures and their I/O on the thread that made it. At most one per thread.
///
/// Dropping it runs what is [kept](crate::kept) to its end, waits for what the kernel still does to files, drops all tasks, cancels what may wait for ever, and waits for that,
/// so that afterwards no buffer is touched. What a task holds while it writes is not let go before it is written.
pub struct Executor {
    inner: Rc<Inner>,
    notice: Arc<Notice>,
    batch: VecDeque<u64>,
}

impl Executor {
    /// An executor for the calling thread. `entries` bounds how many operations are handed to the kernel by one system call
    /// (rounded up to a power of two), not how many fly: the depth of the queue it serves is a good value.
    ///
    /// # Errors
    /// This host, process or thread can not have a ring; the message says what to do.
    pub fn new(entries: u32) -> Result<Self, SetupError> {
        if Ring::current().is_ok() {
            return Err(SetupError::Occupied);
        }
        let means = setup::means(entries, setup::chosen())?;
        Self::on(means, entries)
    }

    /// As [`Executor::new`], whatever was [chosen](crate::choose_engine) for the process.
    ///
    /// # Errors
    /// This host, process or thread can not have such an engine; the message says what to do.
    pub fn with_engine(entries: u32, choice: EngineChoice) -> Result<Self, SetupError> {
        if Ring::current().is_ok() {
            return Err(SetupError::Occupied);
        }
        Self::on(setup::means(entries, choice)?, entries)
    }

    fn on(means: Means, entries: u32) -> Result<Self, SetupError> {
        offload::prepare();
        let notice = Arc::new(Notice::new().map_err(|source| SetupError::Failed { entries, source })?);
        let inner = Rc::new(Inner {
            engine: RefCell::new(Engine::new(means, Arc::clone(&notice))),
            tasks: Tasks::new(Arc::clone(&notice)),
            kept: Cell::new(0),
            closed: Cell::new(false),
        });
        Ring::set_current(&Rc::downgrade(&inner));
        Ok(Self {
            inner,
            notice,
            batch: VecDeque::new(),
        })
    }

    /// The handle that operations are started with; [`Ring::current`] gives the same.
    pub fn ring(&self) -> Ring {
        Ring::new(Rc::clone(&self.inner))
    }

    /// Runs `future`, and all tasks beside it, until `future` ends. Tasks that have not ended stay, and go on with the next
    /// `block_on`.
    ///
    /// # Errors
    /// The kernel refused to go on with the ring. `future` is dropped, when what it had the kernel do to files is over.
    pub fn block_on<F: Future>(&mut self, future: F) -> Result<F::Output, RingError> {
        let mut future = pin!(future);
        let main = Arc::new(TaskWaker::new(Arc::clone(&self.notice), MAIN));
        let waker = Waker::from(Arc::clone(&main));
        main.wake_by_ref();
        loop {
            self.notice.take(&mut self.batch);
            if self.take_main() {
                main.running();
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Ok(output);
                }
            }
            self.inner.tasks.run(&mut self.batch);
            if let Err(error) = self.turn() {
                self.inner.engine.borrow_mut().settle();
                return Err(RingError(error));
            }
        }
    }

    /// Whether the main future is in the batch, which it then leaves.
    fn take_main(&mut self) -> bool {
        let before = self.batch.len();
        self.batch.retain(|&task| task != MAIN);
        self.batch.len() < before
    }

    /// Submits, waits if nothing is ready, and wakes whoever completions concern.
    fn turn(&self) -> io::Result<()> {
        let wait = if self.notice.begin_wait() {
            Wait::ForOne
        } else {
            Wait::No
        };
        let mut engine = self.inner.engine.borrow_mut();
        // What landed while room was made for a launch has to be told before anybody waits.
        let wait = if engine.landed.is_empty() { wait } else { Wait::No };
        let entered = engine.enter(wait);
        self.notice.end_wait();
        engine.reap();
        let mut landed = std::mem::take(&mut engine.landed);
        drop(engine);
        landed.tell();
        self.inner.engine.borrow_mut().landed.reuse(landed);
        entered
    }
}

impl Executor {
    /// Runs on until operations that go on by themselves are over: cut off within a change of tables, they would leave an image
    /// nobody knows the state of.
    fn end_kept(&mut self) {
        let begun = Instant::now();
        while self.inner.kept.get() > 0 {
            if begun.elapsed() > KEPT_LIMIT {
                tracing::error!("operations do not end with their executor: they are cut off");
                return;
            }
            self.notice.take(&mut self.batch);
            // There is no main future any more.
            self.take_main();
            self.inner.tasks.run(&mut self.batch);
            if self.inner.kept.get() > 0 && self.turn().is_err() {
                return;
            }
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks may end their operations as they are dropped, so they go while the ring still takes cancellations.
        loop {
            self.end_kept();
            // What a task holds to keep others away, it holds until then.
            self.inner.engine.borrow_mut().settle();
            let evicted = self.inner.tasks.evict();
            if evicted.is_empty() {
                break;
            }
            drop(evicted);
        }
        self.inner.closed.set(true);
        Ring::set_current(&Weak::new());
        let mut engine = self.inner.engine.borrow_mut();
        for key in engine.flights.endless() {
            let _ = engine.cancel(key);
        }
        while engine.flights.flying() > 0 {
            if engine.enter(Wait::ForOne).is_err() {
                // The kernel may go on using the memory, and there is no way left to learn when it stops.
                engine.flights.leak();
                break;
            }
            engine.reap();
        }
        let mut landed = std::mem::take(&mut engine.landed);
        drop(engine);
        landed.tell();
    }
}
