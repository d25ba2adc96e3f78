//! Work on a disk under a running guest, on a thread of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::{DiskJob, DiskJobState, DiskLayer, PIVOTED};
use disk_image::live::{self, Switch};
use disk_image::{Image, Progress, Watch};
use sandbox::{NewThread, ThreadKind};

use super::engine::block_on;
use crate::story::whole;

/// How often progress is told of, at most.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Stack of a job's thread, bytes: of those that copy images, futures of several layers deep.
const STACK_BYTES: usize = 1 << 20;

/// Called with each word of a job, from its thread; the last one is [`JobNews::Ended`].
pub(crate) type Tell = Box<dyn Fn(JobNews) + Send + Sync>;

/// What a job says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobNews {
    /// It is so far.
    At {
        /// Bytes dealt with.
        done_bytes: u64,
        /// Of so many.
        total_bytes: u64,
    },
    /// Its thread is about to end; its outcome can be taken.
    Ended,
}

/// What a disk consists of once a job is done.
pub(super) struct NewTop {
    pub(super) image: Image,
    pub(super) layer: DiskLayer,
}

/// What a job came to: a new top for the disk, or not even that.
pub(super) type Outcome = Result<Option<NewTop>, Failed>;

/// Why a job did not do what it was for.
pub(super) enum Failed {
    Stopped,
    Error(String),
}

impl Failed {
    pub(super) fn state(self) -> DiskJobState {
        match self {
            Self::Stopped => DiskJobState::Cancelled,
            Self::Error(message) => DiskJobState::Failed { message },
        }
    }
}

/// A job at work.
pub(super) struct Job {
    pub(super) kind: DiskJob,
    watch: Arc<Teller>,
    thread: JoinHandle<Outcome>,
}

impl Job {
    /// Begins `work` on a thread.
    pub(super) fn begin(
        kind: DiskJob,
        tell: Tell,
        work: impl FnOnce(&dyn Watch) -> Outcome + Send + 'static,
    ) -> io::Result<Self> {
        let watch = Arc::new(Teller {
            progress: Progress::new(),
            told: Mutex::default(),
            tell,
        });
        let looking_on = Arc::clone(&watch);
        let thread = NewThread::new(ThreadKind::DiskJob, "disk-job")
            .stack_bytes(STACK_BYTES)
            .spawn_late(move |filter| {
                let outcome = match filter.put_on() {
                    Ok(()) => work(&*looking_on),
                    Err(error) => Err(Failed::Error(whole(&error))),
                };
                (looking_on.tell)(JobNews::Ended);
                outcome
            })?;
        Ok(Self { kind, watch, thread })
    }

    /// Asks it to give up.
    pub(super) fn stop(&self) {
        self.watch.progress.stop();
    }

    /// Waits for its end.
    pub(super) fn outcome(self) -> Outcome {
        let lost = |_| Err(Failed::Error("its thread was lost".to_owned()));
        self.thread.join().unwrap_or_else(lost)
    }
}

/// Tells now and then.
struct Teller {
    progress: Progress,
    told: Mutex<Option<Instant>>,
    tell: Tell,
}

impl Watch for Teller {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.progress.progress(done_bytes, total_bytes);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            (self.tell)(JobNews::At {
                done_bytes,
                total_bytes,
            });
        }
    }

    fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }
}

/// Copies into `top` what it reads from below; then it stands alone.
pub(super) fn stream(switch: &Switch, top: &Image, layer: DiskLayer, watch: &dyn Watch) -> Outcome {
    match live::stream(switch, top, watch) {
        Ok(image) => Ok(Some(NewTop { image, layer })),
        Err(live::StreamError::Stopped) => Err(Failed::Stopped),
        Err(error) => Err(Failed::Error(whole(&error))),
    }
}

/// Where a mirror goes.
pub(super) struct Target {
    pub(super) image: Image,
    pub(super) layer: DiskLayer,
    /// It reads as zeroes.
    pub(super) is_zero: bool,
    /// The disk goes on there, which is written here when it does.
    pub(super) note: Option<File>,
}

/// Writes down, durably, that the copy is the disk. A note that may not have become durable is taken back.
fn note(file: &File) -> io::Result<()> {
    let noted = file.write_all_at(PIVOTED, 0).and_then(|()| file.sync_all());
    if noted.is_err() {
        let taken_back = file.set_len(0).and_then(|()| file.sync_all());
        taken_back.inspect_err(|error| tracing::error!(%error, "the note of a pivot can not be taken back"))?;
    }
    noted
}

/// Copies the disk to `target`.
pub(super) fn mirror(switch: &Switch, target: Target, watch: &dyn Watch) -> Outcome {
    let Target {
        image,
        layer,
        is_zero,
        note: to_note,
    } = target;
    let copy = live::mirror(switch, image.disk(), is_zero, watch).map_err(|error| match error {
        live::MirrorError::Stopped => Failed::Stopped,
        error => Failed::Error(whole(&error)),
    })?;
    let failed = |error: live::MirrorError| Failed::Error(whole(&error));
    if let Some(file) = to_note {
        copy.pivot(|| note(&file)).map_err(failed)?;
        return Ok(Some(NewTop { image, layer }));
    }
    copy.cancel().map_err(failed)?;
    block_on(&layer.name, image.close())
        .map_err(|error| Failed::Error(whole(&error)))?
        .map_err(|error| Failed::Error(whole(&error)))?;
    Ok(None)
}
