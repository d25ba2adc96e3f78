//! Running asynchronous work from ordinary threads: an executor for as long as it takes.

use uring::{Executor, RingError, SetupError};

/// Entries of the submission queue: more than a thread of this crate has in flight.
const ENTRIES: u32 = 64;

/// Why work on an image could not run at all.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no executor to be had.
    #[error("no executor for image work")]
    Setup(#[source] SetupError),
    /// The executor gave up in the middle.
    #[error("the executor of image work broke down")]
    Ring(#[source] RingError),
}

/// Runs `work` to its end on the calling thread, which must not run an executor already.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, EngineError> {
    let mut executor = Executor::new(ENTRIES).map_err(EngineError::Setup)?;
    executor.block_on(work).map_err(EngineError::Ring)
}
