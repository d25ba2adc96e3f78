//! Making an image in use independent of what is below it.

use std::ops::Range;
use std::sync::Arc;

use disk::{DiskError, DiskIo, DiskOp, ExtentKind};
use disk_qcow2::ops::{self, AmendError};
use disk_qcow2::{LayerKind, LayerMap};
use disk_raw::Role;

use super::gate::{Busy, Way};
use super::ranges::Ranges;
use super::switch::{Switch, fits};
use crate::copy::{Pieces, no_memory};
use crate::engine::{self, EngineError};
use crate::open::{self, Image, OpenError};
use crate::watch::Watch;

/// What is copied at once, and kept from the guest's changes meanwhile, bytes.
const STEP_BYTES: u64 = 1 << 20;

/// Why an image still needs what is below it. It works as before; what was copied stays, and need not be copied again.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It has a job.
    #[error("the disk can not be worked on now")]
    Busy(#[from] Busy),
    /// Another image.
    #[error("the image is not the one on top of the disk")]
    NotOnTop,
    /// Not one that is on top of anything.
    #[error("the image is raw, and has nothing below it")]
    Raw,
    /// Reading or writing failed.
    #[error("copying into the image failed")]
    Copy(#[source] DiskError),
    /// It was told to stop.
    #[error("stopped on request")]
    Stopped,
    /// At the end.
    #[error("what was copied could not be made durable")]
    Flush(#[source] DiskError),
    /// The reference.
    #[error("the image still refers to what was below it, and needs it")]
    Amend(#[from] AmendError),
    /// The image without what was below.
    #[error("the image can not be opened by itself: it goes on with what was below it until it is closed")]
    Open(#[from] OpenError),
    /// No executor.
    #[error("the disk can not be worked on")]
    Engine(#[from] EngineError),
}

/// Copies all that shows through `top`, the image below `switch`, into it while it is used, and takes the reference to its backing
/// image out of it. Returns the image as it is then, to be closed in the end; the one before is closed. Blocks.
///
/// # Errors
/// The image or what is below fails, the disk has another job, or it was stopped.
pub fn stream(switch: &Switch, top: &Image, watch: &dyn Watch) -> Result<Image, StreamError> {
    let _job = switch.gate().begin_job()?;
    let disk = top.disk();
    let same = Arc::as_ptr(&disk).cast::<()>() == Arc::as_ptr(&switch.current()).cast::<()>();
    if !same {
        return Err(StreamError::NotOnTop);
    }
    let (layer, options) = top.parts().ok_or(StreamError::Raw)?;
    engine::block_on(async {
        let ranges = Arc::new(Ranges::default());
        let way = |disk, ranges| Way {
            disk,
            ranges,
            mirror: None,
        };
        let drained = switch.gate().drain().await;
        drained.set(way(Arc::clone(&disk), Some(Arc::clone(&ranges))));
        drop(drained);
        let copied = async {
            let copy = Copy {
                io: &*disk.open_queue().map_err(StreamError::Copy)?,
                map: &top.layer_map().map_err(StreamError::Copy)?,
                ranges: &ranges,
                watch,
            };
            copy.all().await
        };
        let copied = copied.await;
        let drained = switch.gate().drain().await;
        drained.set(way(Arc::clone(&disk), None));
        copied?;
        top.close().await.map_err(StreamError::Flush)?;
        let container = open::file(&layer.file, &layer.name, options, Role::Container)?;
        let file = container.open_queue().map_err(StreamError::Flush)?;
        ops::set_backing(&*file, None).await?;
        let alone = open::overlay(layer, None, options).await?;
        fits(&*disk, &*alone.disk()).map_err(StreamError::Copy)?;
        drained.set(way(alone.disk(), None));
        Ok(alone)
    })?
}

struct Copy<'a> {
    io: &'a dyn DiskIo,
    map: &'a LayerMap,
    ranges: &'a Arc<Ranges>,
    watch: &'a dyn Watch,
}

impl Copy<'_> {
    async fn all(&self) -> Result<(), StreamError> {
        let mut pieces = Pieces::default();
        let mut at = 0;
        loop {
            // The disk may grow meanwhile.
            let size = self.io.geometry().size_bytes;
            if at >= size {
                return Ok(());
            }
            for extent in self.map.extents(at, size - at).await.map_err(StreamError::Copy)? {
                let end = extent.offset + extent.len;
                while at < end {
                    if self.watch.is_stopped() {
                        return Err(StreamError::Stopped);
                    }
                    // What the image holds itself it does not lose.
                    let step_end = match extent.kind {
                        LayerKind::Data | LayerKind::Zero => end,
                        LayerKind::Below => self.below(&mut pieces, at..end).await?,
                    };
                    at = step_end;
                    self.watch.progress(at, size);
                }
            }
        }
    }

    /// Deals with the start of a range that shows what is below, and says how far that was.
    async fn below(&self, pieces: &mut Pieces, range: Range<u64>) -> Result<u64, StreamError> {
        let found = self.io.extents(range.start, range.end - range.start).await;
        match found.map_err(StreamError::Copy)?.first() {
            // Nothing at all below, or zeroes: so it will read by itself. What the guest writes there is the image's own.
            Some(first) if first.kind == ExtentKind::Zero => Ok(first.end()),
            _ => {
                let end = (range.start - range.start % STEP_BYTES + STEP_BYTES).min(range.end);
                self.step(pieces, range.start..end).await?;
                Ok(end)
            }
        }
    }

    /// Copies a range that nobody changes meanwhile, but for what the guest has changed already.
    async fn step(&self, pieces: &mut Pieces, range: Range<u64>) -> Result<(), StreamError> {
        let _held = self.ranges.copy(range.clone()).await;
        let mut at = range.start;
        while at < range.end {
            for extent in self.map.extents(at, range.end - at).await.map_err(StreamError::Copy)? {
                at = extent.offset + extent.len;
                if extent.kind == LayerKind::Below {
                    let copied = self.copy(pieces, extent.offset..at).await;
                    copied.map_err(StreamError::Copy)?;
                }
            }
        }
        Ok(())
    }

    /// What is read through the image becomes its own.
    async fn copy(&self, pieces: &mut Pieces, range: Range<u64>) -> Result<(), DiskError> {
        let mut at = range.start;
        while at < range.end {
            for extent in self.io.extents(at, range.end - at).await? {
                at = extent.end();
                if extent.kind == ExtentKind::Zero {
                    continue;
                }
                let len = usize::try_from(extent.len).unwrap_or_default();
                let bufs = pieces
                    .take(extent.offset, len)
                    .map_err(|error| no_memory(DiskOp::Read, error))?;
                let (result, bufs) = self.io.read(extent.offset, bufs).await;
                result?;
                let (result, bufs) = self.io.write(extent.offset, bufs).await;
                pieces.keep(bufs);
                result?;
            }
        }
        Ok(())
    }
}
