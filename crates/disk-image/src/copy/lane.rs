//! One lane: takes a region, finds what it consists of, and copies piece after piece.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use disk::{DiskIo, DiskOp, ZeroMode};
use disk_qcow2::Compressor;
use guestmem::IoBuf;

use super::guide::{Action, Step};
use super::pieces::{Pieces, is_zero, runs};
use super::regions::REGION_BYTES;
use super::{CopyError, Job, Queues, no_memory};

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
pub(super) async fn run(job: &Job<'_>, queues: &Queues) {
    let mut lane = Lane {
        job,
        queues,
        pieces: Pieces::default(),
        compared: Pieces::default(),
        packed_to: 0,
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
    queues: &'a Queues,
    pieces: Pieces,
    compared: Pieces,
    /// Up to where clusters of the region at hand were compressed.
    packed_to: u64,
}

impl Lane<'_> {
    /// False if the copy is over.
    async fn region(&mut self, region: Range<u64>) -> Result<bool, CopyError> {
        let Range { start: mut at, end } = region;
        while at < end {
            let steps = self.queues.guide.steps(at, end - at).await.map_err(CopyError::Source)?;
            for step in steps {
                at = match step.action {
                    Action::Copy => {
                        let range = step.offset..step.end();
                        let goes_on = match &self.queues.packer {
                            Some(packer) => self.pack(packer, range).await?,
                            None => self.data(range).await?,
                        };
                        if !goes_on {
                            return Ok(false);
                        }
                        step.end()
                    }
                    Action::Zero | Action::Skip => self.no_data(step, end).await?,
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
            let bufs = read(&*self.queues.source, &mut self.pieces, at, end - at).await?;
            if let Some(reference) = &self.queues.reference {
                let other = read_padded(&**reference, &mut self.compared, at, end - at).await?;
                self.write_differing(at, bufs, other).await?;
            } else {
                self.write_runs(at, bufs).await?;
            }
            self.job.regions.finish(end - at, self.job.watch);
            at = end;
        }
        Ok(true)
    }

    /// Compresses the clusters that a range touches, whole.
    async fn pack(&mut self, packer: &Compressor, range: Range<u64>) -> Result<bool, CopyError> {
        let cluster = packer.cluster_bytes();
        let size = self.queues.target.geometry().size_bytes;
        let mut at = (range.start - range.start % cluster).max(self.packed_to);
        while at < range.end {
            if self.job.is_over() {
                return Ok(false);
            }
            let len = cluster.min(size - at);
            let bufs = read_padded(&*self.queues.source, &mut self.pieces, at, len).await?;
            let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
            if bufs.iter().any(|buf| !is_zero(buf, 0, buf.len())) {
                packer.write(at, &bytes).await.map_err(CopyError::Target)?;
            }
            self.pieces.keep(bufs);
            at += len;
        }
        self.packed_to = at.max(self.packed_to);
        self.job.regions.finish(range.end - range.start, self.job.watch);
        Ok(true)
    }

    async fn write_runs(&mut self, at: u64, bufs: Vec<IoBuf>) -> Result<(), CopyError> {
        for run in runs(at, bufs, self.job.rules.sparse_bytes) {
            match run.data {
                Some(bufs) => self.write(run.offset, bufs).await?,
                None if self.job.rules.target_is_zero => {}
                None => self.write_zeroes(run.offset, run.len).await?,
            }
        }
        Ok(())
    }

    /// Writes the buffers whose bytes are not those of `other`.
    async fn write_differing(&mut self, mut at: u64, bufs: Vec<IoBuf>, other: Vec<IoBuf>) -> Result<(), CopyError> {
        for (buf, other) in bufs.into_iter().zip(other) {
            let len = buf.len() as u64;
            if buf.to_vec() == other.to_vec() {
                self.pieces.keep(vec![buf]);
            } else {
                self.write(at, vec![buf]).await?;
            }
            self.compared.keep(vec![other]);
            at += len;
        }
        Ok(())
    }

    async fn write(&mut self, at: u64, bufs: Vec<IoBuf>) -> Result<(), CopyError> {
        let (result, bufs) = self.queues.target.write(at, bufs).await;
        self.pieces.keep(bufs);
        result.map_err(CopyError::Target)
    }

    /// Deals with a piece that is not copied; with what follows the region and is alike, too, if nobody has it yet. Returns where
    /// to go on.
    async fn no_data(&mut self, step: Step, region_end: u64) -> Result<u64, CopyError> {
        let end = match step.end() == region_end {
            true => self.alike(step.action, region_end).await?,
            false => step.end(),
        };
        if step.action == Action::Zero {
            self.write_zeroes(step.offset, end - step.offset).await?;
        }
        self.job.regions.finish(end - step.offset, self.job.watch);
        Ok(end)
    }

    /// Takes what follows a region and is to be dealt with in the same way, and gives its end. Looks no farther ahead than it has
    /// come, so that all looks together take no longer than one at the whole disk.
    async fn alike(&self, action: Action, region_end: u64) -> Result<u64, CopyError> {
        let (mut end, total) = (region_end, self.job.regions.total());
        let mut ahead = REGION_BYTES;
        while end < total {
            let len = ahead.min(total - end);
            let steps = self.queues.guide.steps(end, len).await.map_err(CopyError::Source)?;
            let Some(first) = steps.first().filter(|first| first.action == action) else {
                break;
            };
            if !self.job.regions.extend(end, first.end()) {
                break;
            }
            let whole = first.len == len;
            end = first.end();
            if !whole {
                break;
            }
            ahead = ahead.saturating_mul(2);
        }
        Ok(end)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let written = self.queues.target.write_zeroes(offset, len, ZeroMode::MayUnmap).await;
        written.map_err(CopyError::Target)
    }
}

async fn read(io: &dyn DiskIo, pieces: &mut Pieces, at: u64, len: u64) -> Result<Vec<IoBuf>, CopyError> {
    let len = usize::try_from(len).unwrap_or_default();
    let bufs = pieces.take(at, len);
    let bufs = bufs.map_err(|error| CopyError::Source(no_memory(DiskOp::Read, error)))?;
    let (result, bufs) = io.read(at, bufs).await;
    result.map_err(CopyError::Source)?;
    Ok(bufs)
}

/// What is at `at`, with zeroes behind the end; cut as by [`read`].
async fn read_padded(io: &dyn DiskIo, pieces: &mut Pieces, at: u64, len: u64) -> Result<Vec<IoBuf>, CopyError> {
    let there = io.geometry().size_bytes.saturating_sub(at).min(len);
    if there == len {
        return read(io, pieces, at, len).await;
    }
    let len = usize::try_from(len).unwrap_or_default();
    let none = |error| CopyError::Source(no_memory(DiskOp::Read, error));
    let mut bufs = pieces.take(at, len).map_err(none)?;
    let mut offset = at;
    for buf in &mut bufs {
        // Can not fail: the range is the buffer.
        let _ = buf.fill(0, buf.len(), 0);
        let part = (at + there).saturating_sub(offset).min(buf.len() as u64);
        if part > 0 {
            let front = IoBuf::heap(usize::try_from(part).unwrap_or_default(), 4096).map_err(none)?;
            let (result, front) = io.read(offset, vec![front]).await;
            result.map_err(CopyError::Source)?;
            for front in front {
                let _ = buf.copy_from(0, &front.to_vec());
            }
        }
        offset += buf.len() as u64;
    }
    Ok(bufs)
}
