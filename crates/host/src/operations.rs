//! Operations that are under way: their progress, and how to cancel them. What is kept of them is in the registry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use api_types::{OperationPhase, Progress};
use spec::OperationId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Who carries an operation out.
pub(crate) enum Worker {
    /// A pull, which can be watched and cancelled.
    Pull(watch::Receiver<images::Progress>, CancellationToken),
    /// Work on a volume, likewise.
    Volume(watch::Receiver<Progress>, CancellationToken),
    /// A machine; this asks it to give an operation up.
    Machine(Box<dyn Fn(OperationId) + Send>),
}

/// How an operation ended, on its way to the registry.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) id: OperationId,
    pub(crate) phase: OperationPhase,
    pub(crate) failure: Option<Failure>,
}

/// Operations under way in this process.
#[derive(Default)]
pub(crate) struct LiveOperations {
    workers: Mutex<HashMap<OperationId, Worker>>,
    closing: AtomicBool,
}

impl LiveOperations {
    /// From now on `worker` carries out `id`.
    pub(crate) fn begin(&self, id: OperationId, worker: Worker) {
        self.lock().insert(id, worker);
    }

    /// The operation is over.
    pub(crate) fn end(&self, id: OperationId) {
        self.lock().remove(&id);
    }

    /// How far it is, if it is under way and knows.
    pub(crate) fn progress(&self, id: OperationId) -> Option<Progress> {
        match self.lock().get(&id)? {
            Worker::Pull(progress, _) => Some(to_progress(*progress.borrow())),
            Worker::Volume(progress, _) => Some(progress.borrow().clone()),
            Worker::Machine(_) => None,
        }
    }

    /// Asks for it to be given up; false when it is not under way.
    pub(crate) fn cancel(&self, id: OperationId) -> bool {
        match self.lock().get(&id) {
            Some(Worker::Pull(_, token) | Worker::Volume(_, token)) => token.cancel(),
            Some(Worker::Machine(cancel)) => cancel(id),
            None => return false,
        }
        true
    }

    /// The daemon ends: pulls and work on volumes stop where they are. The next daemon goes on with them.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for worker in self.lock().values() {
            if let Worker::Pull(_, token) | Worker::Volume(_, token) = worker {
                token.cancel();
            }
        }
    }

    /// Whether the daemon ends: what is given up now was not given up by anybody's wish, and is not noted as over.
    pub(crate) fn closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_progress(progress: images::Progress) -> Progress {
    let step = match progress.phase {
        images::Phase::Resolving => "resolve",
        images::Phase::Fetching => "download",
        images::Phase::Unpacking => "unpack",
        images::Phase::Copying => "copy",
        images::Phase::Converting => "convert",
        images::Phase::Sealing => "seal",
        images::Phase::Publishing => "publish",
    };
    Progress {
        step: step.to_owned(),
        done_bytes: progress.done_bytes,
        total_bytes: (progress.total_bytes > 0).then_some(progress.total_bytes),
    }
}
