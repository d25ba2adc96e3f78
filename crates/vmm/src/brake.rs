//! What slows vCPUs: a thread that has each of them come out of the guest often, so that it can be made to wait.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;

use kvm::Kicker;
use sandbox::{NewThread, ThreadKind};

use crate::gate::RUN_TIME;

/// Stack of its thread, bytes.
const STACK_BYTES: usize = 64 << 10;

/// Kicks until it is dropped.
pub(crate) struct Brake {
    /// Hung up to end the thread.
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Brake {
    /// Without it nothing is slowed, which a move can do without.
    pub(crate) fn start(kickers: &[Kicker]) -> Option<Self> {
        Self::try_start(kickers.to_vec())
            .inspect_err(|error| tracing::warn!(%error, "vcpus can not be slowed: no thread for it"))
            .ok()
    }

    fn try_start(kickers: Vec<Kicker>) -> io::Result<Self> {
        let (release, released) = mpsc::channel::<()>();
        let thread = NewThread::new(ThreadKind::Watch, "brake")
            .stack_bytes(STACK_BYTES)
            .spawn(move || {
                while released.recv_timeout(RUN_TIME) == Err(RecvTimeoutError::Timeout) {
                    kickers.iter().for_each(Kicker::kick);
                }
            })?;
        Ok(Self {
            release: Some(release),
            thread: Some(thread),
        })
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.release = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, if it had one, was reported where it happened.
            let _ = thread.join();
        }
    }
}
