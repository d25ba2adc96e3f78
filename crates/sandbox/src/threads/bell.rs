//! What wakes the steward.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

static BELL: OnceLock<OwnedFd> = OnceLock::new();

/// Makes it, unless it is there.
pub(super) fn hang() -> io::Result<()> {
    if BELL.get().is_none() {
        // Of two at the same time either will do.
        let _ = BELL.set(eventfd(0, EventfdFlags::CLOEXEC)?);
    }
    Ok(())
}

/// Rings it, if it is there. Safe in signal handlers.
pub(super) fn ring() -> bool {
    BELL.get()
        .is_some_and(|bell| rustix::io::write(bell, &1_u64.to_ne_bytes()).is_ok())
}

/// Waits until it is rung, or a signal comes.
pub(super) fn listen() {
    if let Some(bell) = BELL.get() {
        let _ = rustix::io::read(bell, &mut [0; 8]);
    }
}
