//! Files that travel with bytes over a UNIX socket (`SCM_RIGHTS`, unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most files in one message (Linux `SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// Why bytes or files could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// More than [`FDS_MAX`].
    #[error("{0} files in one message; at most {FDS_MAX} travel together")]
    TooManyFiles(usize),
    /// The socket's own error; `WOULDBLOCK` where it does not block and is full.
    #[error("control socket can not be written")]
    Socket(#[source] Errno),
}

/// Why bytes or files could not be received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// Files were lost on the way, as the receiver has no room for more.
    #[error("files sent over the control socket were lost: raise the limit of open files (RLIMIT_NOFILE)")]
    FilesLost,
    /// The socket's own error; `WOULDBLOCK` where it does not block and nothing is there.
    #[error("control socket can not be read")]
    Socket(#[source] Errno),
}

/// Sends the beginning of `bytes` and all of `fds` with the first of them; returns how many bytes went. The rest goes by plain
/// writes. With files, `bytes` must not be empty.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, SendError> {
    if fds.len() > FDS_MAX {
        return Err(SendError::TooManyFiles(fds.len()));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map_err(SendError::Socket)
}

/// Receives up to `bytes.len()` bytes and whatever files came with them, close-on-exec. 0 bytes: the peer is gone.
pub fn recv_with_fds(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, RecvError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(RecvError::Socket)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(RecvError::FilesLost);
    }
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn files_arrive_open_and_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut files: Vec<_> = (0..3u8)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[n]).unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(send_with_fds(&near, b"frame", &borrowed).unwrap(), 5);
        files.clear();
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv_with_fds(&far, &mut bytes, &mut fds).unwrap(), 5);
        let contents: Vec<u8> = fds
            .into_iter()
            .map(|fd| {
                let mut byte = [0xff];
                std::fs::File::from(fd).read_exact(&mut byte).unwrap();
                byte[0]
            })
            .collect();
        assert_eq!(contents, [0, 1, 2]);
    }

    #[test]
    fn the_end_is_zero_bytes_and_too_many_files_are_refused() {
        let (near, far) = UnixStream::pair().unwrap();
        let many = vec![near.as_fd(); FDS_MAX + 1];
        assert!(matches!(
            send_with_fds(&near, b"x", &many),
            Err(SendError::TooManyFiles(254))
        ));
        drop(near);
        assert_eq!(recv_with_fds(&far, &mut [0; 4], &mut Vec::new()).unwrap(), 0);
    }
}
