//! Copying a disk in use to another one, and going on there.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use disk::{Disk, DiskError, DiskIo, DiskOp, ExtentKind, ZeroMode};
use guestmem::IoBuf;

use super::copying::Copying;
use super::gate::{Busy, Job, Way};
use super::ranges::Ranges;
use super::switch::{Switch, fits};
use crate::copy::{Pieces, no_memory};
use crate::engine::{self, EngineError};
use crate::watch::Watch;

/// What is copied at once, and kept from the guest's changes meanwhile, bytes.
const STEP_BYTES: u64 = 1 << 20;

/// Why there is no copy. The disk is as it was, and goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// It has a job.
    #[error("the disk can not be copied now")]
    Busy(#[from] Busy),
    /// The target can not take its place.
    #[error("the target can not take the place of the disk")]
    Fits(#[source] DiskError),
    /// Reading failed.
    #[error("reading the disk failed: the copy is given up")]
    Source(#[source] DiskError),
    /// Writing failed.
    #[error("writing the copy failed: it is given up")]
    Target(#[source] DiskError),
    /// A change of the guest's did not reach both.
    #[error("a change did not reach both disk and copy: the copy is given up")]
    Diverged(#[source] DiskError),
    /// The note that the copy takes the disk's place.
    #[error("it could not be noted that the copy takes the disk's place: the disk stays")]
    Note(#[source] io::Error),
    /// It was told to stop.
    #[error("stopped on request")]
    Stopped,
    /// No executor.
    #[error("the copy can not be made")]
    Engine(#[from] EngineError),
}

/// A copy that holds what the disk does, and follows it. Dropped, it is given up.
pub struct Mirror {
    switch: Switch,
    job: Option<Job>,
    copying: Arc<Copying>,
}

/// Copies the disk below `switch` to `target` while it is used: every change goes to both from now on. When this returns, they hold
/// the same. `target_is_zero` tells that the target reads as zeroes. Blocks.
///
/// # Errors
/// The target does not fit or fails, the disk fails or has another job, or it was stopped.
pub fn mirror(
    switch: &Switch,
    target: Arc<dyn Disk>,
    target_is_zero: bool,
    watch: &dyn Watch,
) -> Result<Mirror, MirrorError> {
    let job = switch.gate().begin_job()?;
    let ranges = Arc::new(Ranges::exclusive());
    let mirror = Mirror {
        switch: switch.clone(),
        job: Some(job),
        copying: Arc::new(Copying::to(target)),
    };
    engine::block_on(async {
        let source = mirror.begin(&ranges).await?;
        let copy = Copy {
            mirror: &mirror,
            ranges: &ranges,
            target_is_zero,
            watch,
        };
        copy.all(&*source).await
    })??;
    Ok(mirror)
}

impl Mirror {
    /// From here on changes go to both.
    async fn begin(&self, ranges: &Arc<Ranges>) -> Result<Arc<dyn Disk>, MirrorError> {
        let drained = self.switch.gate().drain().await;
        let disk = self.switch.current();
        fits(&*disk, self.copying.target()).map_err(MirrorError::Fits)?;
        drained.set(Way {
            disk: Arc::clone(&disk),
            ranges: Some(Arc::clone(ranges)),
            mirror: Some(Arc::clone(&self.copying)),
        });
        Ok(disk)
    }

    /// Goes on with the copy in the place of the disk, which is as it was at this moment. The copy is durable as far as the disk
    /// was. `note` is called when both are the same and durable and nothing is in flight: what it writes down tells later which
    /// of the two is the disk. Returns the disk that was, to be closed. Blocks.
    ///
    /// # Errors
    /// The copy has failed since, or can not be made durable, or `note` failed: the disk stays.
    pub fn pivot(mut self, note: impl FnOnce() -> io::Result<()>) -> Result<Arc<dyn Disk>, MirrorError> {
        let switch = self.switch.clone();
        let copying = Arc::clone(&self.copying);
        engine::block_on(async {
            let drained = switch.gate().drain().await;
            copying.check().map_err(MirrorError::Diverged)?;
            let io = copying.target().open_queue().map_err(MirrorError::Target)?;
            io.flush().await.map_err(MirrorError::Target)?;
            note().map_err(MirrorError::Note)?;
            let old = switch.current();
            drained.set(Way {
                disk: copying.shared_target(),
                ranges: None,
                mirror: None,
            });
            // Done: there is nothing to give up.
            self.job = None;
            Ok(old)
        })?
    }

    /// Gives the copy up: it is whole as of this moment, if nothing had failed. Blocks.
    ///
    /// # Errors
    /// No executor.
    pub fn cancel(mut self) -> Result<(), MirrorError> {
        Ok(self.end()?)
    }

    fn end(&mut self) -> Result<(), EngineError> {
        let Some(job) = self.job.take() else { return Ok(()) };
        engine::block_on(async {
            let drained = job.gate().drain().await;
            drained.set(Way {
                disk: self.switch.current(),
                ranges: None,
                mirror: None,
            });
        })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "changes of a disk still go to a copy that was given up");
        }
    }
}

struct Copy<'a> {
    mirror: &'a Mirror,
    ranges: &'a Arc<Ranges>,
    target_is_zero: bool,
    watch: &'a dyn Watch,
}

impl Copy<'_> {
    async fn all(&self, source: &dyn Disk) -> Result<(), MirrorError> {
        let io = source.open_queue().map_err(MirrorError::Source)?;
        let target = self.mirror.copying.target().open_queue().map_err(MirrorError::Target)?;
        // What the disk grows by meanwhile is zeroes in both, or was written to both.
        let size = io.geometry().size_bytes;
        let mut pieces = Pieces::default();
        let mut at = 0;
        while at < size {
            let hint = io.extents(at, size - at).await.map_err(MirrorError::Source)?;
            for extent in hint {
                let skips = extent.kind == ExtentKind::Zero && self.target_is_zero;
                while at < extent.end() {
                    if self.watch.is_stopped() {
                        return Err(MirrorError::Stopped);
                    }
                    self.mirror.copying.check().map_err(MirrorError::Diverged)?;
                    let end = match skips {
                        // Whatever is written there from now on is written to both.
                        true => extent.end(),
                        false => (at - at % STEP_BYTES + STEP_BYTES).min(extent.end()),
                    };
                    if !skips {
                        self.step(&*io, &*target, &mut pieces, at..end).await?;
                    }
                    at = end;
                    self.watch.progress(at, size);
                }
            }
        }
        self.mirror.copying.check().map_err(MirrorError::Diverged)
    }

    /// Copies a range that nobody changes meanwhile.
    async fn step(
        &self,
        source: &dyn DiskIo,
        target: &dyn DiskIo,
        pieces: &mut Pieces,
        range: Range<u64>,
    ) -> Result<(), MirrorError> {
        let _held = self.ranges.copy(range.clone()).await;
        let mut at = range.start;
        while at < range.end {
            for extent in source.extents(at, range.end - at).await.map_err(MirrorError::Source)? {
                at = extent.end();
                let copied = match extent.kind {
                    ExtentKind::Zero if self.target_is_zero => Ok(()),
                    ExtentKind::Zero => target.write_zeroes(extent.offset, extent.len, ZeroMode::MayUnmap).await,
                    ExtentKind::Data => {
                        let bufs = read(source, pieces, extent.offset, extent.len).await?;
                        let (result, bufs) = target.write(extent.offset, bufs).await;
                        pieces.keep(bufs);
                        result
                    }
                };
                copied.map_err(MirrorError::Target)?;
            }
        }
        Ok(())
    }
}

async fn read(io: &dyn DiskIo, pieces: &mut Pieces, at: u64, len: u64) -> Result<Vec<IoBuf>, MirrorError> {
    let len = usize::try_from(len).unwrap_or_default();
    let bufs = pieces.take(at, len);
    let bufs = bufs.map_err(|error| MirrorError::Source(no_memory(DiskOp::Read, error)))?;
    let (result, bufs) = io.read(at, bufs).await;
    result.map_err(MirrorError::Source)?;
    Ok(bufs)
}
