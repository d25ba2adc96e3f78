//! Locks on images.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use uring::blocking::LockKind;

use super::files_error::FilesError;

/// Locks by both of the kernel's ways: flock(2) keeps the daemon's own work from the file, the open file's lock of fcntl(2) is
/// what other programs that know disk images look at. Both belong to the open file, which the machine process gets: they last
/// until that ends, however it does.
pub(super) fn lock(file: File, path: &Path, shared: bool) -> Result<OwnedFd, FilesError> {
    let (operation, kind) = if shared {
        (FlockOperation::NonBlockingLockShared, LockKind::Shared)
    } else {
        (FlockOperation::NonBlockingLockExclusive, LockKind::Exclusive)
    };
    let locked = rustix::fs::flock(&file, operation).map_err(std::io::Error::from);
    let locked = locked.and_then(|()| uring::blocking::lock(&file, kind));
    match locked {
        Ok(()) => Ok(file.into()),
        Err(error) if is_taken(&error) => Err(FilesError::InUse { path: path.to_owned() }),
        Err(source) => Err(FilesError::Own {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A lock that somebody else has is `EWOULDBLOCK` by flock(2) and `EACCES` or `EAGAIN` by fcntl(2).
fn is_taken(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::WOULDBLOCK | Errno::ACCESS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_written_has_one_user_and_one_that_is_read_any_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let take = |shared| lock(open(), file.path(), shared);
        let reader = take(true).unwrap();
        let second = take(true).unwrap();
        assert!(matches!(take(false), Err(FilesError::InUse { .. })));
        drop((reader, second));
        let _writer = take(false).unwrap();
        assert!(matches!(take(true), Err(FilesError::InUse { .. })));
    }

    #[test]
    fn a_lock_of_either_kind_keeps_others_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let other = open();
        uring::blocking::lock(&other, LockKind::Exclusive).unwrap();
        assert!(matches!(lock(open(), file.path(), true), Err(FilesError::InUse { .. })));
        drop(other);
        let other = open();
        rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
        assert!(matches!(lock(open(), file.path(), true), Err(FilesError::InUse { .. })));
    }
}
