//! The sockets this process was started with.

use std::os::fd::{OwnedFd, RawFd};

use control::{CONSOLE_LISTENER_FD, CONTROL_LISTENER_FD};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Both of them, listening.
pub(crate) struct Sockets {
    /// Where daemons connect.
    pub(crate) control: OwnedFd,
    /// Where people connect.
    pub(crate) console: OwnedFd,
}

/// Why a descriptor is not what it must be.
#[derive(Debug, thiserror::Error)]
#[error("descriptor {fd} is no listening socket: was this started by karatd?")]
pub(crate) struct NotInherited {
    fd: RawFd,
}

/// Takes what the daemon left at the agreed numbers.
pub(crate) fn sockets() -> Result<Sockets, NotInherited> {
    Ok(Sockets {
        control: listener(CONTROL_LISTENER_FD)?,
        console: listener(CONSOLE_LISTENER_FD)?,
    })
}

/// A number alone gives no ownership, so the kernel is asked for a descriptor of our own to the same open file. The original
/// stays open, unused, until this process ends.
fn listener(fd: RawFd) -> Result<OwnedFd, NotInherited> {
    let missing = |_| NotInherited { fd };
    let process = pidfd_open(getpid(), PidfdFlags::empty()).map_err(missing)?;
    let socket = pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).map_err(missing)?;
    match rustix::net::sockopt::socket_acceptconn(&socket) {
        Ok(true) => Ok(socket),
        Ok(false) | Err(_) => Err(NotInherited { fd }),
    }
}
