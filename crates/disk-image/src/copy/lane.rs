//! One lane: takes a region, finds what it consists of, and copies piece after piece.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use disk::{DiskIo, DiskOp, ExtentKind, ZeroMode};

use super::pieces::{Pieces, runs};
use super::{CopyError, Job, no_memory};

/// Length of one transfer, bytes; where a transfer ends on the disk is a multiple.
const STEP_BYTES: u64 = 1 << 20;

/// Awaits all, on this thread.
pub(crate) async fn join_all<T>(futures: impl Iterator<Item: Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<Pin<Box<_>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        match done.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Copies regions until there are no more.
pub(super) async fn run(job: &Job<'_>, source: &dyn DiskIo, target: &dyn DiskIo) {
    let mut lane = Lane {
        job,
        source,
        target,
        pieces: Pieces::default(),
    };
    while let Some(region) = job.regions.take() {
        match lane.region(region).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return job.fail(error),
        }
    }
}

struct Lane<'a> {
    job: &'a Job<'a>,
    source: &'a dyn DiskIo,
    target: &'a dyn DiskIo,
    pieces: Pieces,
}

impl Lane<'_> {
    /// False if the copy is over.
    async fn region(&mut self, region: Range<u64>) -> Result<bool, CopyError> {
        let Range { start: mut at, end } = region;
        while at < end {
            let extents = self.source.extents(at, end - at).await.map_err(CopyError::Source)?;
            for extent in extents {
                at = match extent.kind {
                    ExtentKind::Data => {
                        if !self.data(extent.offset..extent.end()).await? {
                            return Ok(false);
                        }
                        extent.end()
                    }
                    ExtentKind::Zero => self.zeroes(extent.offset..extent.end(), end).await?,
                };
                if self.job.is_over() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn data(&mut self, range: Range<u64>) -> Result<bool, CopyError> {
        let mut at = range.start;
        while at < range.end {
            if self.job.is_over() {
                return Ok(false);
            }
            let end = (at - at % STEP_BYTES + STEP_BYTES).min(range.end);
            let len = usize::try_from(end - at).unwrap_or_default();
            let bufs = self
                .pieces
                .take(at, len)
                .map_err(|error| CopyError::Source(no_memory(DiskOp::Read, error)))?;
            let (result, bufs) = self.source.read(at, bufs).await;
            result.map_err(CopyError::Source)?;
            for run in runs(at, bufs, self.job.rules.sparse_bytes) {
                match run.data {
                    Some(bufs) => {
                        let (result, bufs) = self.target.write(run.offset, bufs).await;
                        result.map_err(CopyError::Target)?;
                        self.pieces.keep(bufs);
                    }
                    None => self.write_zeroes(run.offset, run.len).await?,
                }
            }
            self.job.regions.finish(end - at, self.job.watch);
            at = end;
        }
        Ok(true)
    }

    /// Deals with zeroes; with those that follow the region, too, if nobody has them yet. Returns where to go on.
    async fn zeroes(&mut self, range: Range<u64>, region_end: u64) -> Result<u64, CopyError> {
        let mut end = range.end;
        let total = self.job.regions.total();
        if end == region_end && end < total {
            let ahead = self.source.extents(end, total - end).await.map_err(CopyError::Source)?;
            if let Some(first) = ahead.first()
                && first.kind == ExtentKind::Zero
                && self.job.regions.extend(end, first.end())
            {
                end = first.end();
            }
        }
        self.write_zeroes(range.start, end - range.start).await?;
        self.job.regions.finish(end - range.start, self.job.watch);
        Ok(end)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        if self.job.rules.target_is_zero {
            return Ok(());
        }
        let written = self.target.write_zeroes(offset, len, ZeroMode::MayUnmap).await;
        written.map_err(CopyError::Target)
    }
}
