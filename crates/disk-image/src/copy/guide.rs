//! What is to be done with which part of a disk.

use std::collections::VecDeque;
use std::rc::Rc;

use disk::{Disk, DiskError, DiskFuture, DiskIo, Extent, ExtentKind};
use disk_qcow2::{LayerKind, LayerMap};

/// What is to be done with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read it from the source, and write it to the target.
    Copy,
    /// Make it zeroes in the target.
    Zero,
    /// Leave the target as it is.
    Skip,
}

/// A piece of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) action: Action,
}

impl Step {
    pub(crate) const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Tells what is to be done: in order, without gaps, from the start of a range on, if not to its end. Belongs to one thread.
pub(crate) trait Guide {
    fn steps(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Step>, DiskError>>;
}

/// Copies what a disk holds.
pub(crate) struct ByExtents {
    pub(crate) io: Rc<dyn DiskIo>,
    pub(crate) zeroes: Action,
}

impl Guide for ByExtents {
    fn steps(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Step>, DiskError>> {
        Box::pin(async move {
            let extents = self.io.extents(offset, len).await?;
            let step = |extent: Extent| Step {
                offset: extent.offset,
                len: extent.len,
                action: match extent.kind {
                    ExtentKind::Data => Action::Copy,
                    ExtentKind::Zero => self.zeroes,
                },
            };
            Ok(extents.into_iter().map(step).collect())
        })
    }
}

/// Copies what an image holds by itself.
pub(crate) struct ByLayer(pub(crate) LayerMap);

impl Guide for ByLayer {
    fn steps(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Step>, DiskError>> {
        Box::pin(async move {
            let found = self.0.extents(offset, len).await?;
            let step = |extent: disk_qcow2::LayerExtent| Step {
                offset: extent.offset,
                len: extent.len,
                action: match extent.kind {
                    LayerKind::Data => Action::Copy,
                    LayerKind::Zero => Action::Zero,
                    LayerKind::Below => Action::Skip,
                },
            };
            Ok(found.into_iter().map(step).collect())
        })
    }
}

/// Copies what shows through an image from an old disk below, before there is a new one.
pub(crate) struct ByChange {
    pub(crate) map: LayerMap,
    pub(crate) old: Option<Rc<dyn DiskIo>>,
    pub(crate) new: Option<Rc<dyn DiskIo>>,
}

impl Guide for ByChange {
    fn steps(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Step>, DiskError>> {
        Box::pin(async move {
            let mut steps = Vec::new();
            for extent in self.map.extents(offset, len).await? {
                if extent.kind != LayerKind::Below {
                    let (offset, len) = (extent.offset, extent.len);
                    steps.push(Step {
                        offset,
                        len,
                        action: Action::Skip,
                    });
                    continue;
                }
                let (mut at, end) = (extent.offset, extent.offset + extent.len);
                let mut below = [&self.old, &self.new].map(|io| Side::of(io.as_deref()));
                while at < end {
                    let [old, new] = &mut below;
                    let (old, old_end) = old.at(at, end).await?;
                    let (new, new_end) = new.at(at, end).await?;
                    let action = match (old, new) {
                        (ExtentKind::Data, _) => Action::Copy,
                        (ExtentKind::Zero, ExtentKind::Data) => Action::Zero,
                        (ExtentKind::Zero, ExtentKind::Zero) => Action::Skip,
                    };
                    let len = old_end.min(new_end) - at;
                    steps.push(Step {
                        offset: at,
                        len,
                        action,
                    });
                    at += len;
                }
            }
            Ok(steps)
        })
    }
}

/// What a disk consists of, looked at once from front to back.
struct Side<'a> {
    io: Option<&'a dyn DiskIo>,
    found: VecDeque<Extent>,
}

impl<'a> Side<'a> {
    fn of(io: Option<&'a dyn DiskIo>) -> Self {
        let found = VecDeque::new();
        Self { io, found }
    }

    /// What there is at `at`, and up to where, before `end`; `at` never goes back. Behind the disk's end, and where there is none,
    /// zeroes.
    async fn at(&mut self, at: u64, end: u64) -> Result<(ExtentKind, u64), DiskError> {
        let Some((io, there)) = self.io.map(|io| (io, io.geometry().size_bytes.min(end))) else {
            return Ok((ExtentKind::Zero, end));
        };
        if at >= there {
            return Ok((ExtentKind::Zero, end));
        }
        while self.found.front().is_some_and(|extent| extent.end() <= at) {
            self.found.pop_front();
        }
        if self.found.is_empty() {
            self.found = io.extents(at, there - at).await?.into();
        }
        let first = self.found.front();
        Ok(first.map_or((ExtentKind::Data, there), |extent| {
            (extent.kind, extent.end().min(there))
        }))
    }
}

/// A guide for each thread of a copy.
pub(crate) type MakeGuide<'a> = &'a (dyn Fn() -> Result<Box<dyn Guide>, DiskError> + Sync);

/// A queue, if there is a disk.
pub(crate) fn queue(disk: Option<&dyn Disk>) -> Result<Option<Rc<dyn DiskIo>>, DiskError> {
    disk.map(Disk::open_queue).transpose()
}
