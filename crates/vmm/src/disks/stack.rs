//! From the files of a chain to one disk.

use std::sync::Arc;

use control::DiskLayer;
use disk::{Access, Disk, DiskError, DiskIo};
use disk_raw::{CacheMode, RawDisk, RawOptions, SectorSize};
use spec::{DiskCache, DiskFormat, DiskSector, DiskSpec};
use uring::Executor;

use super::write_through::WriteThrough;
use crate::files::{ChainFiles, LayerFiles};

/// Operations in flight at once on the rings that open, grow and close disks.
const RING_ENTRIES: u32 = 16;

/// Why a disk can not be used as it is wanted.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A raw image.
    #[error("disk {disk} can not be opened")]
    Raw {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: disk_raw::OpenError,
    },
    /// The chain makes no sense.
    #[error("disk {disk} can not be opened: {why}")]
    Chain {
        /// The disk.
        disk: String,
        /// Why.
        why: String,
    },
    /// An operation on the open disk.
    #[error("disk {disk} can not be changed")]
    Operation {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// No io_uring for the thread that works on images.
    #[error("disk {disk} can not be worked on")]
    Ring {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: uring::SetupError,
    },
    /// The ring broke.
    #[error("disk {disk} can not be worked on")]
    Broken {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: uring::RingError,
    },
}

/// Images and what is done to requests on their way to them.
pub(super) struct Stack {
    name: String,
    /// What the device works on.
    top: Arc<dyn Disk>,
    layers: Vec<DiskLayer>,
}

impl Stack {
    pub(super) fn open(spec: &DiskSpec, files: ChainFiles) -> Result<Self, StackError> {
        let name = spec.name.to_string();
        let layers = files.0.iter().map(|files| files.layer.clone()).collect();
        let images = open_images(spec, files)?;
        let top: Arc<dyn Disk> = match spec.cache {
            DiskCache::Writethrough => Arc::new(WriteThrough::new(images)),
            DiskCache::Cached | DiskCache::Direct => images,
        };
        Ok(Self { name, top, layers })
    }

    pub(super) fn top(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.top)
    }

    pub(super) fn layers(&self) -> &[DiskLayer] {
        &self.layers
    }

    pub(super) fn grow(&self, size_bytes: u64) -> Result<(), StackError> {
        self.operate(async |io| io.grow(size_bytes).await)
    }

    pub(super) fn close(self) -> Result<(), StackError> {
        if self.top.geometry().access == Access::ReadOnly {
            return Ok(());
        }
        self.operate(async |io| io.flush().await)
    }

    /// Does something to the open disk on an executor of its own, on this thread.
    fn operate(&self, act: impl AsyncFnOnce(&dyn DiskIo) -> Result<(), DiskError>) -> Result<(), StackError> {
        let disk = || self.name.clone();
        let mut executor = Executor::new(RING_ENTRIES).map_err(|source| StackError::Ring { disk: disk(), source })?;
        let done = executor.block_on(async {
            let io = self.top.open_queue()?;
            act(&*io).await
        });
        done.map_err(|source| StackError::Broken { disk: disk(), source })?
            .map_err(|source| StackError::Operation { disk: disk(), source })
    }
}

fn open_images(spec: &DiskSpec, files: ChainFiles) -> Result<Arc<dyn Disk>, StackError> {
    let disk = || spec.name.to_string();
    let chain = |why: String| StackError::Chain { disk: disk(), why };
    let mut layers = files.0.into_iter();
    let Some(top) = layers.next() else {
        return Err(chain("it has no image".to_owned()));
    };
    if spec.read_only == top.layer.writable {
        let opened = if top.layer.writable { "writing" } else { "reading" };
        return Err(chain(format!("{} was opened for {opened}", top.layer.name)));
    }
    match top.layer.format {
        DiskFormat::Raw if layers.len() == 0 => raw(spec, top),
        DiskFormat::Raw => Err(chain(format!("{} is raw and has no backing image", top.layer.name))),
        DiskFormat::Qcow2 => Err(chain(format!("{} is no raw image", top.layer.name))),
    }
}

fn raw(spec: &DiskSpec, files: LayerFiles) -> Result<Arc<dyn Disk>, StackError> {
    let options = RawOptions {
        access: if files.layer.writable { Access::ReadWrite } else { Access::ReadOnly },
        cache: match spec.cache {
            DiskCache::Cached | DiskCache::Writethrough => CacheMode::Cached,
            DiskCache::Direct => CacheMode::Direct,
        },
        sector: match spec.sector {
            DiskSector::B512 => SectorSize::B512,
            DiskSector::B4096 => SectorSize::B4096,
        },
        ..RawOptions::named(files.layer.name)
    };
    let image = RawDisk::from_fd(files.image, options).map_err(|source| StackError::Raw {
        disk: spec.name.to_string(),
        source,
    })?;
    Ok(Arc::new(image))
}
