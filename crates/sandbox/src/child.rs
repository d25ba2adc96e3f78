//! What happens in the new process between `fork` and `exec`.
//!
//! Another thread of the parent may have held any lock at the moment of the fork, so nothing here allocates, locks or
//! panics: it is system calls and plain stores only, on data the parent prepared.
#![expect(unsafe_code, reason = "pre_exec, and two system calls without a safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// Written to the report pipe when the network namespace could not be made.
pub(crate) const REPORT_NO_NETWORK_NAMESPACE: u8 = b'n';

/// Everything the new process needs, made before the fork.
pub(crate) struct Preparation {
    /// Landlock ruleset; `None` where the kernel has no landlock.
    pub(crate) ruleset: Option<OwnedFd>,
    /// Write end of a pipe, close-on-exec, for `REPORT_…` bytes.
    pub(crate) report: OwnedFd,
    /// The process that must stay alive.
    pub(crate) parent: Pid,
    /// Soft and hard limit alike.
    pub(crate) limits: Vec<(Resource, u64)>,
}

/// Makes `command` confine its process before the program starts.
pub(crate) fn install(command: &mut Command, preparation: Preparation) {
    // SAFETY: the closure runs in the forked child of a process that may have several threads. It calls `confine`, which
    // makes system calls through rustix's raw back end and libc's `syscall`, writes to its stack, and builds errors from
    // raw error numbers; none of these allocates or takes a lock, so a lock held by another thread at the fork cannot
    // block it.
    unsafe {
        command.pre_exec(move || confine(&preparation));
    }
}

fn confine(preparation: &Preparation) -> io::Result<()> {
    rustix::process::setsid()?;
    if leave_network().is_err() {
        rustix::io::write(&preparation.report, &[REPORT_NO_NETWORK_NAMESPACE])?;
    }
    for &(resource, limit) in &preparation.limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        rustix::process::setrlimit(resource, limit)?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    // After every change of credentials, since those may clear it. The parent may have died before this call took effect.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(preparation.parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    close_descriptors_at_exec()?;
    match &preparation.ruleset {
        Some(ruleset) => enforce(ruleset),
        None => Ok(()),
    }
}

/// An empty network namespace; through a user namespace for who lacks `CAP_SYS_ADMIN`.
fn leave_network() -> io::Result<()> {
    // SAFETY: the child has one thread and shares no file table that matters here; a new network namespace leaves its
    // descriptors as they are.
    let alone = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    if alone.is_ok() {
        return Ok(());
    }
    let both = UnshareFlags::NEWUSER.union(UnshareFlags::NEWNET);
    // SAFETY: as above; a new user namespace needs a single-threaded process, which a forked child is.
    unsafe { rustix::thread::unshare_unsafe(both) }.map_err(io::Error::from)
}

/// Marks all but the standard descriptors close-on-exec, also those another thread opened without the flag.
fn close_descriptors_at_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC takes three integers and only sets a flag on open descriptors;
    // every descriptor stays valid until exec.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts this process under the ruleset; `no_new_privs` must be set.
fn enforce(ruleset: &OwnedFd) -> io::Result<()> {
    let fd: BorrowedFd<'_> = rustix::fd::AsFd::as_fd(ruleset);
    // SAFETY: landlock_restrict_self(2) takes a ruleset descriptor, borrowed for the call, and flags that must be 0.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0 as libc::c_uint) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
