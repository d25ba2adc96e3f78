//! Writing what an image holds into the one below.

use std::sync::Mutex;

use disk::{Access, DiskError};

use crate::chain::Chain;
use crate::copy::{self, ByLayer, CopyError, Guide, Job, Regions, Rules};
use crate::engine::{self, EngineError};
use crate::open::{self, CloseError, OpenError, OpenOptions};
use crate::padded::Padded;
use crate::watch::Watch;

/// Why an image was not committed. It is as it was, and so is what the chain shows.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing below.
    #[error("image {name} has no backing image to commit to")]
    NoBacking {
        /// Its name.
        name: String,
    },
    /// An image of the chain.
    #[error("the images can not be opened")]
    Open(#[from] OpenError),
    /// The image below is smaller, and can not become larger.
    #[error("the backing image can not become as large as the image")]
    Grow(#[source] DiskError),
    /// In between.
    #[error("the image could not be committed: what it shows is unchanged, and committing again goes on")]
    Copy(#[from] CopyError),
    /// At the end.
    #[error("the backing image could not be finished")]
    Close(#[from] CloseError),
    /// No executor.
    #[error("the images can not be worked on")]
    Engine(#[from] EngineError),
}

/// Writes what the top image of `chain` holds by itself into the image below it, which is open for writing and not used by any
/// other image; it becomes larger if need be. Afterwards both show the same, and the top image is of no more use. Cut off in the
/// middle, the chain shows what it showed. Blocks.
///
/// # Errors
/// There is nothing below, an image is in use, or one fails.
pub fn commit(chain: &Chain, watch: &dyn Watch) -> Result<(), CommitError> {
    let top_layer = chain.top();
    let Some(base) = open::tail(chain)? else {
        return Err(CommitError::NoBacking {
            name: top_layer.name.clone(),
        });
    };
    let size = |chain: &Chain| -> Result<u64, OpenError> {
        Ok(open::open(chain, &OpenOptions::default())?.disk().geometry().size_bytes)
    };
    let base_bytes = size(&base)?;
    let reads = OpenOptions::default();
    // What shows through the top image is not read: below it there might as well be nothing.
    let void = Padded::void(base_bytes);
    let top = engine::block_on(open::overlay(top_layer, Some(void), &reads))??;
    let top_bytes = top.disk().geometry().size_bytes;
    let writes = OpenOptions {
        access: Access::ReadWrite,
        ..reads
    };
    let target = open::open(&base, &writes)?;
    let target_disk = target.disk();
    if target_disk.geometry().size_bytes < top_bytes {
        let grown = engine::block_on(async { target_disk.open_queue()?.grow(top_bytes).await })?;
        grown.map_err(CommitError::Grow)?;
    }
    let guide = || -> Result<Box<dyn Guide>, DiskError> { Ok(Box::new(ByLayer(top.layer_map()?))) };
    copy::run(Job {
        source: &*top.disk(),
        target: &*target_disk,
        reference: None,
        guide: &guide,
        packed: None,
        rules: Rules {
            sparse_bytes: 0,
            target_is_zero: false,
            threads: None,
            in_order: false,
        },
        regions: Regions::of(top_bytes),
        watch,
        failure: Mutex::new(None),
    })?;
    Ok(target.close_now()?)
}
