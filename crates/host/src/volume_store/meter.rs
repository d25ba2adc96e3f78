//! How far a job is, and whether it shall go on.

use api_types::{ErrorCode, Progress};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Handed to the thread that works.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
}

impl Meter {
    pub(crate) fn new() -> (Self, watch::Receiver<Progress>, CancellationToken) {
        let (progress, watched) = watch::channel(step("wait", None));
        let cancel = CancellationToken::new();
        let meter = Self {
            progress,
            cancel: cancel.clone(),
        };
        (meter, watched, cancel)
    }

    /// Another step begins.
    pub(crate) fn begin(&self, name: &str, total_bytes: Option<u64>) {
        self.progress.send_replace(step(name, total_bytes));
    }

    /// So many bytes of the step are done.
    pub(crate) fn set(&self, done_bytes: u64) {
        self.progress.send_modify(|progress| {
            progress.done_bytes = progress.total_bytes.map_or(done_bytes, |total| done_bytes.min(total));
        });
    }

    /// So many of so many bytes are done.
    pub(crate) fn set_of(&self, done_bytes: u64, total_bytes: u64) {
        self.progress.send_modify(|progress| {
            progress.total_bytes = Some(total_bytes);
            progress.done_bytes = done_bytes.min(total_bytes);
        });
    }

    /// So many of so many bytes of this step are done.
    pub(crate) fn at(&self, name: &str, done_bytes: u64, total_bytes: u64) {
        let mut progress = step(name, (total_bytes > 0).then_some(total_bytes));
        progress.done_bytes = done_bytes.min(total_bytes);
        self.progress.send_replace(progress);
    }

    /// Whether somebody wants it to be given up.
    pub(crate) fn stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// An error if somebody does.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.stopped() { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits until somebody does.
    pub(crate) async fn given_up(&self) {
        self.cancel.cancelled().await;
    }
}

/// It was given up.
pub(crate) fn cancelled() -> Failure {
    Failure::new(ErrorCode::Cancelled, "cancelled on request")
}

fn step(name: &str, total_bytes: Option<u64>) -> Progress {
    Progress {
        step: name.to_owned(),
        done_bytes: 0,
        total_bytes,
    }
}
