//! Larger disks.

use disk::{Access, DiskError};

use crate::chain::Chain;
use crate::engine::{self, EngineError};
use crate::open::{self, CloseError, OpenError, OpenOptions};

/// Why a disk did not become larger.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The image.
    #[error("the image can not be opened for writing")]
    Open(#[from] OpenError),
    /// The new size.
    #[error("the disk can not have {size_bytes} bytes")]
    Grow {
        /// The size asked for, bytes.
        size_bytes: u64,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// At the end.
    #[error("the new size may not be durable")]
    Close(#[from] CloseError),
    /// No executor.
    #[error("the image can not be worked on")]
    Engine(#[from] EngineError),
}

/// Makes what `chain` shows `size_bytes` large; the new space reads as zeroes. Nothing happens if it is that large, a smaller size is
/// refused. Durable when this returns. Blocks.
///
/// # Errors
/// The image is in use, full, or smaller was asked for.
pub fn resize(chain: &Chain, size_bytes: u64) -> Result<(), ResizeError> {
    let options = OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    };
    let image = open::open(chain, &options)?;
    let disk = image.disk();
    let grown = engine::block_on(async { disk.open_queue()?.grow(size_bytes).await })?;
    grown.map_err(|source| ResizeError::Grow { size_bytes, source })?;
    Ok(image.close_now()?)
}
