//! Transfers of one message that never wait: taps, whose reads and writes are done within the system call. Going through the
//! ring would cost more than it saves there; what waits is [`crate::Ring::readable`].
#![expect(unsafe_code, reason = "readv and writev on buffers by address")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use guestmem::IoBuf;

/// Most buffers of one system call (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const SEGMENTS_MAX: usize = 1024;

/// Transfers on non-blocking files. Kept by its thread, so that lists of buffers are not allocated each time.
#[derive(Default)]
pub struct Immediate {
    segments: Vec<libc::iovec>,
}

impl Immediate {
    /// Without any memory yet.
    pub const fn new() -> Self {
        Self { segments: Vec::new() }
    }

    /// Fills `bufs` with one message, and says how long it was. Buffers beyond the 1024th are not used.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; anything the file says.
    pub fn receive<'a>(&mut self, fd: impl AsFd, bufs: impl Iterator<Item = &'a IoBuf> + Clone) -> io::Result<usize> {
        let count = self.list(bufs.clone());
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: `list` made `count` segments of buffers that `bufs` borrows for longer than this call; an `IoBuf` is good for
        // its whole length, and may be written whoever else looks at it.
        let moved = unsafe { libc::readv(fd, self.segments.as_ptr(), count) };
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        let mut rest = moved;
        for buf in bufs {
            let here = rest.min(buf.len());
            buf.mark_written(here);
            rest -= here;
            if rest == 0 {
                break;
            }
        }
        Ok(moved)
    }

    /// Sends `bufs` as one message.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; `InvalidInput` beyond 1024 buffers; anything the file says.
    pub fn send<'a>(&mut self, fd: impl AsFd, bufs: impl Iterator<Item = &'a IoBuf>) -> io::Result<usize> {
        let mut bufs = bufs;
        let count = self.list(bufs.by_ref());
        if bufs.next().is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: as in `receive`, and the kernel only reads them.
        let moved = unsafe { libc::writev(fd, self.segments.as_ptr(), count) };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Lists at most 1024 of `bufs`, and says how many.
    fn list<'a>(&mut self, bufs: impl Iterator<Item = &'a IoBuf>) -> i32 {
        self.segments.clear();
        self.segments.extend(bufs.take(SEGMENTS_MAX).map(|buf| libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        }));
        // Cannot fail: 1024 at most.
        i32::try_from(self.segments.len()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn messages_stay_whole() {
        let (here, there) = UnixDatagram::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let mut immediate = Immediate::new();
        let out = [b"ab".as_slice(), b"cde"].map(|part| IoBuf::from_bytes(part).unwrap());
        assert_eq!(immediate.send(&here, out.iter()).unwrap(), 5);
        let into = [4, 4].map(|length| IoBuf::heap(length, 1).unwrap());
        assert_eq!(immediate.receive(&there, into.iter()).unwrap(), 5);
        assert_eq!(
            (into[0].to_vec(), into[1].to_vec()),
            (b"abcd".to_vec(), b"e\0\0\0".to_vec())
        );
        let empty = immediate.receive(&there, into.iter()).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let many: Vec<IoBuf> = (0..1025).map(|_| IoBuf::heap(1, 1).unwrap()).collect();
        assert_eq!(
            immediate.send(&here, many.iter()).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
