//! What an image holds itself, told apart from what shows through it: for those who merge images of a chain.

use std::rc::Rc;

use disk::{DiskError, DiskOp};

use super::fault::Fault;
use super::map::What;
use super::open::Qcow2Disk;
use super::state::Engine;

/// Runs looked at for one answer; the caller comes again for the rest.
const RUNS_MAX: usize = 1024;

/// Where what a disk shows comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// The image's own data.
    Data,
    /// The image says that it is zeroes, whatever is below.
    Zero,
    /// The image says nothing: its backing shows, and zeroes where that has an end.
    Below,
}

/// A piece of a disk that comes from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerExtent {
    /// Where it begins, bytes from the start of the disk.
    pub offset: u64,
    /// Its length in bytes, not 0.
    pub len: u64,
    /// Where it comes from.
    pub kind: LayerKind,
}

/// One thread's look at the map of an image.
pub struct LayerMap(Rc<Engine>);

impl Qcow2Disk {
    /// The map of this image by itself, for the calling thread.
    ///
    /// # Errors
    /// The thread can have no queue of a file below.
    pub fn layer_map(&self) -> Result<LayerMap, DiskError> {
        self.engine().map(LayerMap)
    }
}

impl LayerMap {
    /// Where a range comes from: pieces in order and without gaps, from `offset` on. They may stop short of its end, but not at its
    /// start. Changes in flight may be seen or not.
    ///
    /// # Errors
    /// The range is not inside the disk, or the tables can not be read.
    pub async fn extents(&self, offset: u64, len: u64) -> Result<Vec<LayerExtent>, DiskError> {
        let geometry = self.0.image.geometry(512);
        geometry.check(DiskOp::Extents, offset, len)?;
        let stay = self.0.image.tables().epochs.enter();
        let found = self.collect(offset, offset + len).await;
        stay.end();
        found.map_err(|fault| fault.of(DiskOp::Extents, offset, len))
    }

    async fn collect(&self, mut at: u64, end: u64) -> Result<Vec<LayerExtent>, Fault> {
        let mut found: Vec<LayerExtent> = Vec::new();
        for _ in 0..RUNS_MAX {
            if at >= end {
                break;
            }
            let run = self.0.map(at, end - at).await?;
            let kind = match run.what {
                What::Data { .. } | What::Compressed(_) => LayerKind::Data,
                What::Zero => LayerKind::Zero,
                What::Unmapped => LayerKind::Below,
            };
            match found.last_mut() {
                Some(last) if last.kind == kind => last.len += run.len,
                _ => found.push(LayerExtent {
                    offset: at,
                    len: run.len,
                    kind,
                }),
            }
            at += run.len;
        }
        Ok(found)
    }
}
