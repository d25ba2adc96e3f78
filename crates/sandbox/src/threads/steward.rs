//! The thread that starts the others, and does for them what their lists lack.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::bell;
use super::filter::{self, FilterError};
use super::kind::ThreadKind;
use super::memory;
use super::mode::SeccompMode;
use super::violation::{self, Violation};

/// Stack of the steward, bytes: it writes reports, by ways as deep as logs are.
const STACK_BYTES: usize = 256 << 10;

/// Why this process can not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Filters can not be made or put on.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// What tells of forbidden calls can not be set up.
    #[error("the thread that starts the others can not be set up")]
    Steward(#[source] io::Error),
    /// It was done before.
    #[error("this process is confined already")]
    Twice,
}

type Order = Box<dyn FnOnce() + Send>;

/// How to reach the steward.
struct Steward {
    mode: SeccompMode,
    orders: Mutex<VecDeque<Order>>,
}

static STEWARD: OnceLock<Steward> = OnceLock::new();

impl Steward {
    fn orders(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        self.orders().push_back(order);
        bell::ring();
    }

    fn serve(&self, on_violation: fn(&Violation)) {
        loop {
            bell::listen();
            if let Some(violation) = violation::take() {
                on_violation(&violation);
                violation::told();
            }
            while let Some(order) = { self.orders().pop_front() } {
                order();
            }
        }
    }
}

/// Confines all threads of this process that [`NewThread`] starts from now on, each by the list of its kind; the calling one by
/// little until [`confine_this_thread`]. To be called while it is the only one. `on_violation` is told of a forbidden call on a
/// thread of its own, while the thread that made it waits for the end of the process: it must not take long.
///
/// # Errors
/// Nothing is confined, or only in part: a process that must be should end.
pub fn confine_threads(mode: SeccompMode, on_violation: fn(&Violation)) -> Result<(), ConfineError> {
    if mode == SeccompMode::Off {
        return Ok(());
    }
    bell::hang().map_err(ConfineError::Steward)?;
    let steward = Steward {
        mode,
        orders: Mutex::default(),
    };
    if STEWARD.set(steward).is_err() {
        return Err(ConfineError::Twice);
    }
    let Some(steward) = STEWARD.get() else {
        return Err(ConfineError::Twice);
    };
    if mode == SeccompMode::Enforce {
        violation::install_handler().map_err(ConfineError::Steward)?;
    }
    filter::hide_clone3()?;
    let (tell, told) = mpsc::channel();
    thread::Builder::new()
        .name("steward".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            memory::prepare();
            let done = filter::put_on(ThreadKind::Steward, mode);
            let confined = done.is_ok();
            let _ = tell.send(done);
            if confined {
                steward.serve(on_violation);
            }
        })
        .map_err(ConfineError::Steward)?;
    told.recv()
        .map_err(|error| ConfineError::Steward(io::Error::other(error)))??;
    Ok(())
}

/// Confines the calling thread by the list of `kind`, for good, if this process is confined.
///
/// # Errors
/// The thread is not confined.
pub fn confine_this_thread(kind: ThreadKind) -> Result<(), FilterError> {
    match STEWARD.get() {
        Some(steward) => filter::put_on(kind, steward.mode),
        None => Ok(()),
    }
}

/// Has the steward do `job`, for what the calling thread's list lacks; waits for its end, but not longer than `patience`. Where
/// there is no steward, or this is it, the job is done here. It must not wait for anything itself.
pub fn run_by_steward(job: impl FnOnce() + Send + 'static, patience: Duration) {
    let steward = STEWARD.get();
    let Some(steward) = steward.filter(|_| filter::kind_of_this_thread() != Some(ThreadKind::Steward)) else {
        return job();
    };
    let (tell, told) = mpsc::channel::<()>();
    steward.order(Box::new(move || {
        job();
        drop(tell);
    }));
    // Nothing is ever sent: it is hung up when the job is done.
    let _ = told.recv_timeout(patience);
}

/// A thread to be started, confined by the list of its kind where the process is confined.
#[derive(Debug)]
#[must_use = "it is started by `spawn`"]
pub struct NewThread {
    kind: ThreadKind,
    name: String,
    stack_bytes: Option<usize>,
}

/// The filter of a thread that was started without; see [`NewThread::spawn_late`].
#[derive(Debug)]
#[must_use = "the thread is confined by `put_on`"]
pub struct LateFilter(ThreadKind);

impl LateFilter {
    /// Confines the calling thread, for good.
    ///
    /// # Errors
    /// The thread is not confined, and should not go on.
    pub fn put_on(self) -> Result<(), FilterError> {
        confine_this_thread(self.0)
    }
}

impl NewThread {
    /// Of this kind; up to 15 bytes of its name are what the host shows.
    pub fn new(kind: ThreadKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            stack_bytes: None,
        }
    }

    /// With a stack of so many bytes, instead of 2 MiB.
    pub const fn stack_bytes(mut self, bytes: usize) -> Self {
        self.stack_bytes = Some(bytes);
        self
    }

    /// Starts it. Confining itself is the first thing it does, and has been done when this returns.
    ///
    /// # Errors
    /// There can be no thread, or it could not be confined and ended.
    pub fn spawn(self, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let (tell, told) = mpsc::channel();
        let thread = self.spawn_late(move |filter| {
            let done = filter.put_on();
            let confined = done.is_ok();
            let _ = tell.send(done);
            drop(tell);
            if confined {
                body();
            }
        })?;
        match told.recv() {
            Ok(Ok(())) => Ok(thread),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::other("a new thread died before it began")),
        }
    }

    /// Starts it with what the steward may do, which is more than its kind may, to prepare its work; nothing of what it handles then
    /// may come from a guest. It must put the filter on before anything does.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn spawn_late<T: Send + 'static>(
        self,
        body: impl FnOnce(LateFilter) -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let filter = LateFilter(self.kind);
        let mut builder = thread::Builder::new().name(self.name);
        if let Some(bytes) = self.stack_bytes {
            builder = builder.stack_size(bytes);
        }
        let steward = STEWARD.get();
        let Some(steward) = steward.filter(|_| filter::kind_of_this_thread() != Some(ThreadKind::Steward)) else {
            return builder.spawn(move || body(filter));
        };
        let (tell, told) = mpsc::channel();
        steward.order(Box::new(move || {
            // Whoever asked waits for the answer.
            let _ = tell.send(builder.spawn(move || body(filter)));
        }));
        told.recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts threads has ended")))
    }
}
