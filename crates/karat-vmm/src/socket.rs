//! A connected socket as a stream of bytes.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

/// A connected socket that blocks.
#[derive(Clone)]
pub(crate) struct Socket(Arc<OwnedFd>);

impl Socket {
    /// Small messages are not held back, and calls wait, whatever the socket was set to before.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
        match sockopt::set_tcp_nodelay(&fd, true) {
            // A UNIX socket holds nothing back.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOPROTOOPT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self(Arc::new(fd)))
    }

    /// Calls wait no longer than this; with none, for ever.
    pub(crate) fn wait_at_most(&self, time: Option<Duration>) -> io::Result<()> {
        for which in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&*self.0, which, time)?;
        }
        Ok(())
    }

    pub(crate) fn hang_up(&self) {
        // The peer may have closed it already.
        let _ = shutdown(&*self.0, Shutdown::Both);
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&*self.0, bytes, RecvFlags::empty())?.0)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&*self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
