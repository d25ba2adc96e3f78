//! A machine's own disk, made from an image's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{ImageDigest, StoreError, durable, sparse};

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// The file system shares the blocks until one side writes (`FICLONE`): takes no time and no space.
    Reflink,
    /// The data was copied, holes were kept.
    SparseCopy,
}

/// A finished clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    /// How it was made.
    pub method: CloneMethod,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// Data bytes that were copied; 0 for a reflink.
    pub copied_bytes: u64,
}

/// Why a clone could not be made. Nothing is left at the target.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The image cannot be read.
    #[error("cannot clone a disk of this image")]
    Image(#[source] StoreError),
    /// A disk is never cut off.
    #[error("image {digest} needs a disk of at least {needed_bytes} bytes, {wanted_bytes} were asked for")]
    TooSmall {
        /// The image.
        digest: ImageDigest,
        /// Its virtual size, bytes.
        needed_bytes: u64,
        /// What was asked for, bytes.
        wanted_bytes: u64,
    },
    /// A disk is made of sectors.
    #[error("disk size {0} is not a multiple of 512 bytes")]
    NotSectors(u64),
    /// There is something already.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The file system of the target is full.
    #[error("no space left for disk {0}")]
    DiskFull(PathBuf),
    /// The caller gave up.
    #[error("cloning to {0} was cancelled")]
    Cancelled(PathBuf),
    /// Something else with the target.
    #[error("cannot write disk {path}")]
    Io {
        /// The target.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Clones `source` to `target` and grows it to `size_bytes`, which the caller has checked. The target appears complete or not
/// at all: it is made beside its place, under a name that begins with a dot. A copy is not begun, and not gone on with, unless there
/// is room for so many bytes by `has_room`.
pub(crate) fn clone_file(
    source: &File,
    target: &Path,
    size_bytes: u64,
    has_room: &dyn Fn(u64) -> bool,
    stop: &dyn Fn() -> bool,
) -> Result<Cloned, CloneError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CloneError::DiskFull(target.to_path_buf()),
        io::ErrorKind::AlreadyExists => CloneError::Exists(target.to_path_buf()),
        io::ErrorKind::Interrupted => CloneError::Cancelled(target.to_path_buf()),
        _ => CloneError::Io {
            path: target.to_path_buf(),
            source,
        },
    };
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidFilename.into()));
    };
    if target.symlink_metadata().is_ok() {
        return Err(CloneError::Exists(target.to_path_buf()));
    }
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".part");
    let half = parent.join(hidden);
    // One caller owns a target, so what lies here was left by a crash.
    durable::remove_all(&half).map_err(failed)?;
    let result = fill(source, &half, size_bytes, has_room, stop).and_then(|cloned| {
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &half, cwd, target, rustix::fs::RenameFlags::NOREPLACE)?;
        durable::sync_dir(parent)?;
        Ok(cloned)
    });
    result.map_err(|error| {
        let _ = std::fs::remove_file(&half); // The first error is the one to tell.
        failed(error)
    })
}

fn fill(
    source: &File,
    path: &Path,
    size_bytes: u64,
    has_room: &dyn Fn(u64) -> bool,
    stop: &dyn Fn() -> bool,
) -> io::Result<Cloned> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // Any refusal (other file system, no support) leads to the copy; a real fault will show there.
    let (method, copied_bytes) = match rustix::fs::ioctl_ficlone(&file, source) {
        Ok(()) => (CloneMethod::Reflink, 0),
        Err(_) => {
            let allocated = source.metadata()?.blocks() * STAT_BLOCK_BYTES;
            let copied = if has_room(allocated) {
                let may_not = || stop() || !has_room(0);
                sparse::copy_data(source, &file, &may_not)
            } else {
                Err(io::ErrorKind::StorageFull.into())
            };
            let lacking = |error: io::Error| match error.kind() {
                io::ErrorKind::Interrupted if !stop() => io::ErrorKind::StorageFull.into(),
                _ => error,
            };
            (CloneMethod::SparseCopy, copied.map_err(lacking)?)
        }
    };
    file.set_len(size_bytes)?;
    file.sync_all()?;
    Ok(Cloned {
        method,
        size_bytes,
        copied_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn grows_refuses_what_exists_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempfile_in(dir.path()).unwrap();
        source.set_len(1 << 20).unwrap();
        source.write_all_at(b"data", 4096).unwrap();
        let target = dir.path().join("disk");
        std::fs::write(dir.path().join(".disk.part"), "left by a crash").unwrap();
        let cloned = clone_file(&source, &target, 4 << 20, &|_| true, &|| false).unwrap();
        assert_eq!(cloned.size_bytes, 4 << 20);
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!(bytes.len(), 4 << 20);
        assert_eq!(&bytes[4096..4100], b"data");
        let again = clone_file(&source, &target, 4 << 20, &|_| true, &|| false).unwrap_err();
        assert!(matches!(again, CloneError::Exists(_)));
        if cloned.method == CloneMethod::SparseCopy {
            let stopped = clone_file(&source, &dir.path().join("two"), 4 << 20, &|_| true, &|| true).unwrap_err();
            assert!(matches!(stopped, CloneError::Cancelled(_)));
            // Neither begun without room for all of it, nor gone on with when it went meanwhile.
            for has_room in [&(|bytes: u64| bytes == 0) as &dyn Fn(u64) -> bool, &|bytes: u64| {
                bytes > 0
            }] {
                let full = clone_file(&source, &dir.path().join("two"), 4 << 20, has_room, &|| false).unwrap_err();
                assert!(matches!(full, CloneError::DiskFull(_)), "{full}");
            }
        }
        let missing = clone_file(&source, &dir.path().join("no/disk"), 4 << 20, &|_| true, &|| false).unwrap_err();
        assert!(matches!(missing, CloneError::Io { .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the disk");
    }
}
