//! Copying one disk to another: threads, each with a ring of its own and several lanes, take regions of the disk one after the
//! other; what reads as zeroes is neither read nor written.

mod guide;
mod lane;
mod pieces;
mod regions;

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::thread;

use disk::{Disk, DiskError, DiskErrorKind, DiskIo, DiskOp};

use disk_qcow2::Compressor;

use crate::engine::{self, EngineError};
use crate::open::Image;
use crate::watch::Watch;

pub(crate) use guide::{Action, ByChange, ByExtents, ByLayer, Guide, MakeGuide, queue};
pub(crate) use lane::join_all;
pub(crate) use pieces::{PIECE_BYTES, Pieces, is_zero};
pub(crate) use regions::Regions;

/// Most threads of one copy. More than the memory bus of most hosts can feed.
const THREADS_MAX: usize = 4;

/// Transfers in flight per thread.
const LANES: usize = 4;

/// Why a copy ended early. The target is half done then.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It was told to stop.
    #[error("stopped on request")]
    Stopped,
    /// Reading failed.
    #[error("reading failed")]
    Source(#[source] DiskError),
    /// Writing failed.
    #[error("writing failed")]
    Target(#[source] DiskError),
    /// The target is smaller than what is to be copied.
    #[error("the target has {target_bytes} bytes, and {source_bytes} are to be copied")]
    TooSmall {
        /// Size of the source, bytes.
        source_bytes: u64,
        /// Size of the target, bytes.
        target_bytes: u64,
    },
    /// No executor.
    #[error("copying can not run")]
    Engine(#[from] EngineError),
}

/// How to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Unit in which zeroes among data are looked for, bytes, a power of two of at least the target's sector; 0 to look for none.
    pub(crate) sparse_bytes: usize,
    /// The target reads as zeroes where nothing was written to it.
    pub(crate) target_is_zero: bool,
    /// Threads to copy with; `None` for what suits the host.
    pub(crate) threads: Option<NonZeroUsize>,
    /// One piece after the other, by one thread, whatever `threads` says.
    pub(crate) in_order: bool,
}

impl Rules {
    /// Threads, and the lanes of each.
    fn crew(&self) -> (Option<NonZeroUsize>, usize) {
        match self.in_order {
            true => (Some(NonZeroUsize::MIN), 1),
            false => (self.threads, LANES),
        }
    }
}

/// One copy in progress, as its threads see it.
pub(crate) struct Job<'a> {
    pub(crate) source: &'a dyn Disk,
    pub(crate) target: &'a dyn Disk,
    /// What the target shows without being written: data that is the same there is not copied.
    pub(crate) reference: Option<&'a dyn Disk>,
    pub(crate) guide: MakeGuide<'a>,
    /// The target once more, if what is copied is to be compressed there.
    pub(crate) packed: Option<&'a Image>,
    pub(crate) rules: Rules,
    pub(crate) regions: Regions,
    pub(crate) watch: &'a dyn Watch,
    pub(crate) failure: Mutex<Option<CopyError>>,
}

impl Job<'_> {
    /// Whether to give up, because of the watcher or because another lane has failed.
    pub(crate) fn is_over(&self) -> bool {
        if self.watch.is_stopped() {
            self.fail(CopyError::Stopped);
        }
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The first failure counts.
    pub(crate) fn fail(&self, error: CopyError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }
}

/// Copies all of `source` to the start of `target`, compressed if that is given as `packed`, too. Does not flush. Blocks.
pub(crate) fn copy(
    source: &dyn Disk,
    target: &dyn Disk,
    packed: Option<&Image>,
    rules: Rules,
    watch: &dyn Watch,
) -> Result<(), CopyError> {
    let source_bytes = source.geometry().size_bytes;
    let target_bytes = target.geometry().size_bytes;
    if target_bytes < source_bytes {
        return Err(CopyError::TooSmall {
            source_bytes,
            target_bytes,
        });
    }
    let zeroes = match rules.target_is_zero {
        true => Action::Skip,
        false => Action::Zero,
    };
    let guide = || -> Result<Box<dyn Guide>, DiskError> {
        let io = source.open_queue()?;
        Ok(Box::new(ByExtents { io, zeroes }))
    };
    run(Job {
        source,
        target,
        reference: None,
        guide: &guide,
        packed,
        rules,
        regions: Regions::of(source_bytes),
        watch,
        failure: Mutex::new(None),
    })
}

/// Does what the guide says. Does not flush. Blocks.
pub(crate) fn run(job: Job<'_>) -> Result<(), CopyError> {
    let (threads, count) = job.rules.crew();
    on_threads(threads, || {
        if let Err(error) = engine::block_on(lanes(&job, count)) {
            job.fail(error.into());
        }
    });
    match job.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Runs `work` on several threads, and waits for all.
pub(crate) fn on_threads(threads: Option<NonZeroUsize>, work: impl Fn() + Sync) {
    let cpus = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let count = threads.map_or_else(cpus, NonZeroUsize::get).clamp(1, THREADS_MAX);
    thread::scope(|scope| {
        let started: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        for thread in started {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
}

async fn lanes(job: &Job<'_>, count: usize) {
    let queues = || {
        Ok::<_, CopyError>(Queues {
            source: job.source.open_queue().map_err(CopyError::Source)?,
            target: job.target.open_queue().map_err(CopyError::Target)?,
            reference: queue(job.reference).map_err(CopyError::Source)?,
            guide: (job.guide)().map_err(CopyError::Source)?,
            packer: job
                .packed
                .map(Image::compressor)
                .transpose()
                .map_err(CopyError::Target)?,
        })
    };
    match queues() {
        Ok(queues) => {
            join_all((0..count).map(|_| lane::run(job, &queues))).await;
        }
        Err(error) => job.fail(error),
    }
}

/// A thread's ways to what a copy works with.
struct Queues {
    source: Rc<dyn DiskIo>,
    target: Rc<dyn DiskIo>,
    reference: Option<Rc<dyn DiskIo>>,
    guide: Box<dyn Guide>,
    packer: Option<Compressor>,
}

/// No memory for a buffer.
pub(crate) fn no_memory(op: DiskOp, error: guestmem::IoBufError) -> DiskError {
    DiskError::new(op, DiskErrorKind::Io).because(error)
}

#[cfg(test)]
mod tests;
