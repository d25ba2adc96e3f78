//! A connection to a machine process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use control::{Decoder, FrameError, FromVm, Hello, PROTOCOL_VERSION, ToVm, VmRequest};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// How long a machine process has for its first frame.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read at a time; a frame is some hundred bytes.
const READ_BYTES: usize = 4096;

/// Why a connection is of no use, or was none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody listens: the process is gone.
    #[error("the machine process does not listen")]
    NobodyListens(#[source] io::Error),
    /// The socket's own error.
    #[error("the connection to the machine process broke")]
    Socket(#[source] io::Error),
    /// The process closed the connection.
    #[error("the machine process closed the connection")]
    Closed,
    /// It listens, but says nothing.
    #[error("the machine process says nothing")]
    Silent,
    /// What it says is not understood.
    #[error("the machine process is not understood")]
    Frame(#[source] FrameError),
    /// It speaks a newer protocol.
    #[error("the machine process speaks protocol {0}, this daemon up to {PROTOCOL_VERSION}: run the newer karatd")]
    TooNew(u32),
    /// The first frame was something else.
    #[error("the machine process did not introduce itself")]
    NoHello,
}

/// An open connection whose `Hello` was read.
pub(crate) struct Link {
    stream: UnixStream,
    decoder: Decoder,
    ready: VecDeque<FromVm>,
    next_number: u64,
    protocol: u32,
}

impl Link {
    /// Connects and waits for the introduction.
    pub(crate) async fn open(socket: &Path) -> Result<(Self, Hello), LinkError> {
        let stream = UnixStream::connect(socket).await.map_err(unconnected)?;
        let mut link = Self {
            stream,
            decoder: Decoder::new(),
            ready: VecDeque::new(),
            next_number: 1,
            protocol: 0,
        };
        let first = tokio::time::timeout(HELLO_TIMEOUT, link.recv())
            .await
            .map_err(|_| LinkError::Silent)??;
        match first {
            FromVm::Hello(hello) if hello.protocol > PROTOCOL_VERSION => Err(LinkError::TooNew(hello.protocol)),
            FromVm::Hello(hello) => {
                link.protocol = hello.protocol;
                Ok((link, hello))
            }
            _ => Err(LinkError::NoHello),
        }
    }

    /// The version that the process speaks.
    pub(crate) const fn protocol(&self) -> u32 {
        self.protocol
    }

    /// The next frame. May be dropped and called again without loss.
    pub(crate) async fn recv(&mut self) -> Result<FromVm, LinkError> {
        if let Some(frame) = self.ready.pop_front() {
            return Ok(frame);
        }
        let mut bytes = [0; READ_BYTES];
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(LinkError::Frame)? {
                return Ok(frame);
            }
            self.stream.readable().await.map_err(LinkError::Socket)?;
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(length) => self.decoder.push(bytes.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(LinkError::Socket(error)),
            }
        }
    }

    /// Sends a request without files, and returns its number. Never waits: a process that does not read what little is sent
    /// to it is an error.
    pub(crate) fn send(&mut self, request: VmRequest) -> Result<u64, LinkError> {
        let number = self.number();
        let bytes = control::encode(&ToVm { number, request }).map_err(LinkError::Frame)?;
        match self.stream.try_write(&bytes) {
            Ok(written) if written == bytes.len() => Ok(number),
            Ok(_) => Err(LinkError::Silent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LinkError::Silent),
            Err(error) => Err(LinkError::Socket(error)),
        }
    }

    /// Sends a request with files, and returns its number.
    pub(crate) async fn send_files(&mut self, request: VmRequest, fds: &[BorrowedFd<'_>]) -> Result<u64, LinkError> {
        let number = self.number();
        let bytes = control::encode(&ToVm { number, request }).map_err(LinkError::Frame)?;
        let mut sent = self.send_first(&bytes, fds).await?;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            self.stream.writable().await.map_err(LinkError::Socket)?;
            match self.stream.try_write(rest) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(LinkError::Socket(error)),
            }
        }
        Ok(number)
    }

    async fn send_first(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, LinkError> {
        let send = || {
            control::send_with_fds(self.stream.as_fd(), bytes, fds).map_err(|error| match error {
                control::SendError::Socket(errno) => io::Error::from(errno),
                other @ control::SendError::TooManyFiles(_) => io::Error::other(other),
            })
        };
        self.stream
            .async_io(Interest::WRITABLE, send)
            .await
            .map_err(LinkError::Socket)
    }

    /// Waits for the answer to a request; events that come before it are kept for [`Link::recv`].
    pub(crate) async fn answer(&mut self, number: u64) -> Result<Answer, LinkError> {
        let mut before = VecDeque::new();
        let answer = loop {
            match self.recv().await? {
                FromVm::Done { number: to, status } if to == number => break Ok(status),
                FromVm::Refused { number: to, refusal } if to == number => break Err(refusal),
                other => before.push_back(other),
            }
        };
        before.append(&mut self.ready);
        self.ready = before;
        Ok(answer)
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

/// Only a socket that is not there, or that nobody has open, tells that the process is gone: a busy process or a daemon short of
/// descriptors is refused otherwise (unix(7)).
fn unconnected(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LinkError::NobodyListens(error),
        _ => LinkError::Socket(error),
    }
}

/// How a request was answered.
pub(crate) type Answer = Result<control::VmStatus, control::Refusal>;
