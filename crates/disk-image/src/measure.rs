//! How large an image will be.

use disk::{DiskError, DiskIo, ExtentKind};
use disk_qcow2::ops::{self, Measure};

use crate::chain::Chain;
use crate::create::CreateOptions;
use crate::engine::{self, EngineError};
use crate::open::{self, OpenError, OpenOptions};

/// Why an image could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The source.
    #[error("the image can not be opened")]
    Open(#[from] OpenError),
    /// Its map.
    #[error("the image can not be read")]
    Read(#[from] DiskError),
    /// The options.
    #[error("there is no such image")]
    Options(#[from] ops::CreateError),
    /// No executor.
    #[error("the image can not be worked on")]
    Engine(#[from] EngineError),
}

/// How large the file of a new image will be that takes what `source` shows, if its data is not looked at for zeroes. Blocks.
///
/// # Errors
/// The source can not be read, or the options exclude each other.
pub fn measure(source: &Chain, target: &CreateOptions) -> Result<Measure, MeasureError> {
    let image = open::open(source, &OpenOptions::default())?;
    let cluster_bytes = match target {
        CreateOptions::Raw { .. } => crate::create::SECTOR_BYTES,
        CreateOptions::Qcow2(options) => options.cluster_bytes.max(1),
    };
    let disk = image.disk();
    let clusters = engine::block_on(async { clusters_with_data(&*disk.open_queue()?, cluster_bytes).await })??;
    Ok(match target {
        CreateOptions::Raw { .. } => Measure {
            required: clusters * cluster_bytes,
            fully_allocated: target.size_bytes(),
        },
        CreateOptions::Qcow2(options) => ops::measure(options, clusters)?,
    })
}

async fn clusters_with_data(io: &dyn DiskIo, cluster_bytes: u64) -> Result<u64, DiskError> {
    let size = io.geometry().size_bytes;
    let (mut at, mut count, mut counted_to) = (0, 0, 0);
    while at < size {
        for extent in io.extents(at, size - at).await? {
            at = extent.end();
            if extent.kind == ExtentKind::Data {
                let first = (extent.offset / cluster_bytes).max(counted_to);
                let end = at.div_ceil(cluster_bytes);
                count += end.saturating_sub(first);
                counted_to = end.max(counted_to);
            }
        }
    }
    Ok(count)
}
