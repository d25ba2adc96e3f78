//! Asynchronous work on images, from ordinary threads.

use uring::Executor;

use super::error::StackError;

/// Operations in flight at once on the rings that open, grow and close disks.
const RING_ENTRIES: u32 = 16;

/// Runs something to its end, on an executor of its own on this thread.
pub(super) fn block_on<T>(disk: &str, act: impl Future<Output = T>) -> Result<T, StackError> {
    let disk = || disk.to_owned();
    let mut executor = Executor::new(RING_ENTRIES).map_err(|source| StackError::Ring { disk: disk(), source })?;
    executor
        .block_on(act)
        .map_err(|source| StackError::Broken { disk: disk(), source })
}
