//! System calls of disks that io_uring has no operation for. They block, and belong where blocking is no matter.
#![expect(unsafe_code, reason = "fcntl and ioctl with arguments by address")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{self, Setter};

/// `BLKDISCARD`, `_IO(0x12, 119)` (include/uapi/linux/fs.h).
const BLKDISCARD: ioctl::Opcode = ioctl::opcode::none(0x12, 119);

/// What a lock lets others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others may hold shared locks too. The file must be open for reading.
    Shared,
    /// Nobody else holds any. The file must be open for writing.
    Exclusive,
}

/// Locks the whole file for this *open file description* (`F_OFD_SETLK`, fcntl(2)): every descriptor made from it by `dup`, fork
/// or passing shares the lock, any other opening of the file, in this process too, conflicts. Never waits; the lock ends with the
/// last descriptor. Locking again changes the kind.
///
/// # Errors
/// `EAGAIN` or `EACCES` when another open file description holds a conflicting lock; anything the file system says.
pub fn lock(fd: impl AsFd, kind: LockKind) -> io::Result<()> {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    };
    let mut range = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as it is borrowed, and `range` is a valid, initialised `flock` for the whole call.
    let status = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut range) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tells a block device that `len` bytes from `offset` on are of no use (`BLKDISCARD`). Afterwards they read as anything.
///
/// # Errors
/// `EOPNOTSUPP` where the device can not; `ENOTTY` where `fd` is no block device.
pub fn discard_blocks(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD takes the address of two u64: start and length in bytes.
    let request = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([offset, len]) };
    // SAFETY: the request is BLKDISCARD with the argument it takes; it writes no memory of this process.
    unsafe { ioctl::ioctl(fd, request) }?;
    Ok(())
}

/// Has the kernel begin to write what was written to a file and is not on its device yet (`sync_file_range` with
/// `SYNC_FILE_RANGE_WRITE`), so that a sync later has less to wait for. Makes nothing durable. Blocks while the device's queue is full.
///
/// # Errors
/// `ESPIPE` where there is nothing of the kind; anything the device says.
pub fn start_writeback(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open as it is borrowed, and no address is passed. A length of 0 means up to the end.
    let status = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
