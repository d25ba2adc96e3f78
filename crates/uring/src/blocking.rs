//! System calls of disks that io_uring has no operation for. They block, and belong where blocking is no matter.
#![expect(unsafe_code, reason = "fcntl and ioctl with arguments by address")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Setter};

/// `BLKDISCARD`, `_IO(0x12, 119)` (include/uapi/linux/fs.h).
const BLKDISCARD: ioctl::Opcode = ioctl::opcode::none(0x12, 119);

/// A range of bytes: where it begins and how long it is; 0 for up to the end of all offsets, as in `struct flock`.
type Span = (i64, i64);

/// All bytes.
const ALL: Span = (0, 0);
/// Bytes that stand for what QEMU does with an image: it holds shared locks on them and only ever *tests* for exclusive ones
/// (block/file-posix.c, `RAW_LOCK_PERM_BASE` 100: reading, writing, rewriting what is there, resizing). Who holds one of the
/// last three is a writer.
const QEMU_CHANGES: Span = (101, 3);
/// The byte that QEMU locks to forbid reading (`RAW_LOCK_SHARED_BASE` 200). The three behind it forbid what [`QEMU_CHANGES`] are.
const QEMU_NO_READING: Span = (200, 1);
/// What [`LockKind::Shared`] locks: all bytes but those, so that QEMU sees a reader that forbids changes.
const READER: [Span; 3] = [(0, 101), (104, 96), (201, 0)];

/// What a lock lets others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others may hold shared locks too, and QEMU may read. The file must be open for reading.
    Shared,
    /// Nobody else holds any. The file must be open for writing.
    Exclusive,
}

/// Locks the whole file for this *open file description* (`F_OFD_SETLK`, fcntl(2)): every descriptor made from it by `dup`, fork
/// or passing shares the lock, any other opening of the file, in this process too, conflicts. Never waits; the lock ends with the
/// last descriptor. Locking again changes the kind.
///
/// QEMU is understood, and understands: of it and this, only one writes, and both may read.
///
/// # Errors
/// `EAGAIN` or `EACCES` when another open file description holds a conflicting lock; anything the file system says. Having
/// asked for a shared lock, none is held then.
pub fn lock(fd: impl AsFd, kind: LockKind) -> io::Result<()> {
    let fd = fd.as_fd();
    match kind {
        LockKind::Exclusive => set_lock(fd, libc::F_WRLCK, ALL),
        LockKind::Shared => share(fd).inspect_err(|_| {
            // What there was to say has been said.
            let _ = set_lock(fd, libc::F_UNLCK, ALL);
        }),
    }
}

/// QEMU takes its locks first and looks then, as this does: whoever of the two is second sees the other.
fn share(fd: BorrowedFd<'_>) -> io::Result<()> {
    for span in READER {
        set_lock(fd, libc::F_RDLCK, span)?;
    }
    // An exclusive lock of before.
    for span in [QEMU_CHANGES, QEMU_NO_READING] {
        set_lock(fd, libc::F_UNLCK, span)?;
    }
    let mut changes = flock(libc::F_WRLCK, QEMU_CHANGES);
    control(fd, libc::F_OFD_GETLK, &mut changes)?;
    match i32::from(changes.l_type) == libc::F_UNLCK {
        true => Ok(()),
        false => Err(Errno::AGAIN.into()),
    }
}

fn set_lock(fd: BorrowedFd<'_>, kind: i32, span: Span) -> io::Result<()> {
    control(fd, libc::F_OFD_SETLK, &mut flock(kind, span))
}

fn flock(kind: i32, span: Span) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: span.0,
        l_len: span.1,
        l_pid: 0,
    }
}

fn control(fd: BorrowedFd<'_>, command: i32, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open as it is borrowed, and `range` is a valid, initialised `flock` for the whole call.
    let status = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut *range) };
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// An opening of the file that does as QEMU does: shared locks on some bytes, and a look at others. `None`: it gives up.
    fn qemu(path: &std::path::Path, held: &[i64], looked_at: &[i64]) -> Option<File> {
        let file = File::open(path).unwrap();
        for byte in held {
            set_lock(file.as_fd(), libc::F_RDLCK, (*byte, 1)).ok()?;
        }
        let free = |byte: &i64| {
            let mut range = flock(libc::F_WRLCK, (*byte, 1));
            control(file.as_fd(), libc::F_OFD_GETLK, &mut range).unwrap();
            i32::from(range.l_type) == libc::F_UNLCK
        };
        looked_at.iter().all(free).then_some(file)
    }

    #[test]
    fn qemu_reads_beside_a_reader_and_writes_beside_nobody() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let reads = || qemu(path, &[100, 201, 203], &[101, 103, 200]);
        let writes = || qemu(path, &[100, 101, 103, 201, 203], &[101, 103, 200, 201, 203]);
        let shares = || qemu(path, &[100, 101, 103], &[200, 201, 203]);
        let open = || File::options().read(true).write(true).open(path).unwrap();
        let busy = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EAGAIN);

        let mine = open();
        lock(&mine, LockKind::Shared).unwrap();
        assert!(reads().is_some() && writes().is_none() && shares().is_none());
        lock(&mine, LockKind::Exclusive).unwrap();
        assert!(reads().is_none() && writes().is_none() && shares().is_none());
        // Nothing of the exclusive lock is left.
        lock(&mine, LockKind::Shared).unwrap();
        assert!(reads().is_some() && writes().is_none());
        drop(mine);

        let reader = reads().unwrap();
        lock(open(), LockKind::Shared).unwrap();
        assert!(busy(lock(open(), LockKind::Exclusive)));
        drop(reader);
        let writers: [&dyn Fn() -> Option<File>; 2] = [&shares, &writes];
        for writer in writers {
            let writer = writer();
            assert!(writer.is_some());
            for kind in [LockKind::Shared, LockKind::Exclusive] {
                let mine = open();
                assert!(busy(lock(&mine, kind)), "{kind:?}");
                // And nothing is held that would keep others out.
                assert!(qemu(path, &[], &[99, 150, 202]).is_some(), "{kind:?}");
            }
        }
    }
}
