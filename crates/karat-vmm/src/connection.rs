//! One control connection: frames in, frames out, neither ever waited for.

use std::os::fd::OwnedFd;

use control::{Decoder, FDS_MAX, FrameError, FromVm, RecvError, ToVm, encode, recv_with_fds};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// Unsent bytes a peer may pile up before it is given up: many times what a reader that reads can be behind.
const UNSENT_MAX: usize = 1 << 20;
/// Bytes taken from the socket at once.
const CHUNK: usize = 4096;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    #[error("peer closed the connection")]
    Closed,
    #[error("peer does not read what it is sent")]
    Deaf,
    #[error("peer sent more files than a request can have")]
    TooManyFiles,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Receive(RecvError),
    #[error("control socket can not be written")]
    Send(#[source] Errno),
}

/// The near end of a connection. Its socket does not block.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    decoder: Decoder,
    /// Files that came and were not claimed by a request yet.
    files: Vec<OwnedFd>,
    unsent: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::new(),
            files: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// Reads what is there. Requests that arrived whole are put into `requests` even when the connection is gone afterwards.
    pub(crate) fn receive(&mut self, requests: &mut Vec<ToVm>) -> Result<(), Gone> {
        let mut bytes = [0; CHUNK];
        loop {
            match recv_with_fds(&self.socket, &mut bytes, &mut self.files) {
                Ok(0) => return Err(Gone::Closed),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
                Err(RecvError::Socket(Errno::AGAIN)) => return Ok(()),
                Err(RecvError::Socket(Errno::INTR)) => {}
                Err(error) => return Err(Gone::Receive(error)),
            }
            if self.files.len() > FDS_MAX {
                return Err(Gone::TooManyFiles);
            }
            while let Some(request) = self.decoder.next_frame()? {
                requests.push(request);
            }
        }
    }

    /// The first `count` files that nobody claimed yet: those of the request which is handled now. Fewer if fewer came.
    pub(crate) fn take_files(&mut self, count: usize) -> Vec<OwnedFd> {
        self.files.drain(..count.min(self.files.len())).collect()
    }

    /// Queues `message`, and sends what the socket takes.
    pub(crate) fn send(&mut self, message: &FromVm) -> Result<(), Gone> {
        self.unsent.extend(encode(message)?);
        self.flush()?;
        if self.unsent.len() > UNSENT_MAX {
            return Err(Gone::Deaf);
        }
        Ok(())
    }

    /// Whether something waits to be sent.
    pub(crate) const fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), Gone> {
        while !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(Gone::Send(errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{VmEvent, VmRequest, VmState};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection) {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, Connection::new(near.into()))
    }

    fn event() -> FromVm {
        FromVm::Event(VmEvent::StateChanged {
            state: VmState::Running,
        })
    }

    #[test]
    fn requests_before_a_bad_frame_count() {
        let (mut far, mut near) = pair();
        let request = ToVm {
            number: 7,
            request: VmRequest::Status,
        };
        far.write_all(&encode(&request).unwrap()).unwrap();
        far.write_all(&[3, 0, 0, 0, b'b', b'a', b'd']).unwrap();
        let mut requests = Vec::new();
        assert!(matches!(near.receive(&mut requests), Err(Gone::Frame(_))));
        assert_eq!(requests, [request]);
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_in_time() {
        let (_far, mut near) = pair();
        let mut sent = 0;
        let gone = loop {
            match near.send(&event()) {
                Ok(()) => sent += 1,
                Err(gone) => break gone,
            }
            assert!(sent < 1_000_000, "it is never given up");
        };
        assert!(matches!(gone, Gone::Deaf), "{gone}");
    }

    #[test]
    fn what_did_not_fit_is_sent_later() {
        let (mut far, mut near) = pair();
        let frame = encode(&event()).unwrap();
        let mut count = 0;
        while !near.has_unsent() {
            near.send(&event()).unwrap();
            count += 1;
        }
        let mut all = vec![0; frame.len() * count];
        let (first, rest) = all.split_at_mut(frame.len());
        far.read_exact(first).unwrap();
        let reader = std::thread::scope(|scope| {
            let reading = scope.spawn(|| far.read_exact(rest));
            while near.has_unsent() {
                near.flush().unwrap();
            }
            reading.join().unwrap()
        });
        reader.unwrap();
        assert_eq!(all, frame.repeat(count));
    }
}
