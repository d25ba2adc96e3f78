//! Signals: a request to end becomes an event, the end of a terminal means nothing.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

use vmm_sys_util::signal::register_signal_handler;

use crate::bell::Bell;

/// Written by the handler.
static TERMINATION: OnceLock<Bell> = OnceLock::new();

/// Only what is safe in a signal handler: an atomic load and a write to a descriptor that does not block.
extern "C" fn terminate(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    if let Some(bell) = TERMINATION.get() {
        bell.ring();
    }
}

extern "C" fn ignore(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {}

/// Installs the handlers. The bell rings when somebody wants this process to end.
pub(crate) fn install() -> io::Result<&'static Bell> {
    let bell = Bell::new()?;
    let bell = TERMINATION.get_or_init(|| bell);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        register_signal_handler(signal, terminate)?;
    }
    // SIGPIPE is ignored by Rust's runtime already.
    register_signal_handler(libc::SIGHUP, ignore)?;
    Ok(bell)
}
