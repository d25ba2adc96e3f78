//! A new image on top of a disk in use.

use std::fs::File;
use std::io;
use std::sync::Arc;

use disk::{Disk, DiskError, ReadOnly};
use disk_qcow2::ops::{self, BackingName};
use spec::DiskFormat;

use super::gate::{Busy, Way};
use super::switch::{Switch, fits};
use crate::chain::Layer;
use crate::create::{CreateError, CreateOptions, create};
use crate::engine::{self, EngineError};
use crate::open::{self, Image, OpenError, OpenOptions};

/// Why there is no snapshot. The disk goes on as it was; the new image is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It has a job.
    #[error("no snapshot can be taken of the disk now")]
    Busy(#[from] Busy),
    /// The new image.
    #[error("the new image can not be created")]
    Create(#[from] CreateError),
    /// The new image again.
    #[error("the new image can not be opened")]
    Open(#[from] OpenError),
    /// Its descriptor.
    #[error("the new image can not be opened once more")]
    Descriptors(#[source] io::Error),
    /// It can not take the disk's place.
    #[error("the new image can not take the place of the disk")]
    Fits(#[source] DiskError),
    /// The disk.
    #[error("the disk could not be made durable")]
    Flush(#[source] DiskError),
    /// No executor.
    #[error("the snapshot can not be taken")]
    Engine(#[from] EngineError),
}

/// Puts a new qcow2 image, in `target` and called `name`, on top of the disk below `switch`. What the disk holds at this moment is
/// kept, durably, and changes go to the new image from now on, which is used as `options` say. `backing` is how that is to refer to
/// the disk's image. Returns the new image, to be closed in the end. Blocks.
///
/// # Errors
/// The new image can not be made, the disk has another job, fails, or has no sectors of 512 bytes.
pub fn snapshot(
    switch: &Switch,
    target: &File,
    name: &str,
    backing: &BackingName,
    options: &OpenOptions,
) -> Result<Image, SnapshotError> {
    let _job = switch.gate().begin_job()?;
    let disk = switch.current();
    let form = ops::CreateOptions {
        backing: Some(backing.clone()),
        ..ops::CreateOptions::of_size(disk.geometry().size_bytes)
    };
    create(target, None, &CreateOptions::Qcow2(form))?;
    let layer = Layer {
        name: name.to_owned(),
        format: DiskFormat::Qcow2,
        file: target.try_clone().map_err(SnapshotError::Descriptors)?,
        writable: true,
        data_file: None,
    };
    engine::block_on(async {
        let below: Arc<dyn Disk> = Arc::new(ReadOnly::new(Arc::clone(&disk)));
        let image = open::overlay(&layer, Some(below), options).await?;
        let drained = switch.gate().drain().await;
        fits(&*disk, &*image.disk()).map_err(SnapshotError::Fits)?;
        let io = disk.open_queue().map_err(SnapshotError::Flush)?;
        io.flush().await.map_err(SnapshotError::Flush)?;
        drained.set(Way {
            disk: image.disk(),
            ranges: None,
            mirror: None,
        });
        Ok(image)
    })?
}
