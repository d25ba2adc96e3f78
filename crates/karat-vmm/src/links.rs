//! Streams of a migration, made of sockets that the daemon passed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use control::LinkCredentials;
use migration::{Acceptor, Dialer, Link};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::socket::Socket;
use crate::tls::{self, Tls, TlsError};

/// Pause after a connection could not be accepted, so that a lack of descriptors is not polled for.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

fn plain(socket: &Socket) -> Link {
    let ends = socket.clone();
    Link {
        reader: Box::new(socket.clone()),
        writer: Box::new(socket.clone()),
        hang_up: Arc::new(move || ends.hang_up()),
    }
}

/// Sockets that the daemon has connected to the target.
pub(crate) struct Connected {
    sockets: VecDeque<OwnedFd>,
    tls: Option<tls::Client>,
}

impl Connected {
    /// The one for control first. Over TLS where there are credentials.
    pub(crate) fn new(sockets: Vec<OwnedFd>, credentials: Option<&LinkCredentials>) -> Result<Self, TlsError> {
        Ok(Self {
            sockets: sockets.into(),
            tls: credentials.map(tls::Client::new).transpose()?,
        })
    }

    /// The same for other sockets.
    pub(crate) fn again(tls: Option<tls::Client>, sockets: Vec<OwnedFd>) -> Self {
        Self {
            sockets: sockets.into(),
            tls,
        }
    }

    pub(crate) fn tls(&self) -> Option<tls::Client> {
        self.tls.clone()
    }
}

impl Dialer for Connected {
    fn dial(&mut self) -> io::Result<Link> {
        let missing = || io::Error::new(io::ErrorKind::NotConnected, "the daemon has passed too few sockets");
        let socket = Socket::new(self.sockets.pop_front().ok_or_else(missing)?)?;
        match &self.tls {
            None => Ok(plain(&socket)),
            Some(client) => Ok(Tls::connect(client, socket)?.into_link()),
        }
    }
}

/// A socket on which the source connects.
#[derive(Clone)]
pub(crate) struct Listening {
    socket: Arc<OwnedFd>,
    tls: Option<tls::Server>,
}

impl Listening {
    /// Over TLS where there are credentials.
    pub(crate) fn new(socket: OwnedFd, credentials: Option<&LinkCredentials>) -> Result<Self, TlsError> {
        fcntl_getfl(&socket)
            .and_then(|flags| fcntl_setfl(&socket, flags | OFlags::NONBLOCK))
            .map_err(TlsError::Listener)?;
        Ok(Self {
            socket: Arc::new(socket),
            tls: credentials.map(tls::Server::new).transpose()?,
        })
    }

    fn admit(&self, socket: OwnedFd) -> io::Result<Link> {
        let socket = Socket::new(socket)?;
        match &self.tls {
            None => Ok(plain(&socket)),
            Some(server) => Ok(Tls::accept(server, socket)?.into_link()),
        }
    }
}

impl Acceptor for Listening {
    fn accept(&mut self, wait: Duration) -> io::Result<Option<Link>> {
        let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match accept_with(&*self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(self
                .admit(socket)
                .inspect_err(|error| tracing::warn!(%error, "a stream is turned away: it could not prove who it is"))
                .ok()),
            // Gone again, or somebody else was faster.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                tracing::warn!(%errno, "a stream can not be accepted now");
                thread::sleep(ACCEPT_AGAIN);
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
