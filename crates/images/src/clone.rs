//! A machine's own disk, made from an image's.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use disk_image::{Chain, CreateOptions};
use tokio_util::sync::CancellationToken;

use crate::sparse::SparseWriter;
use crate::{DiskFormat, ImageDigest, ImageRecord, Store, StoreError, durable, sparse};

/// How a clone is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloneWay {
    /// A qcow2 on top of the sealed image, which has to stay as long as the disk does.
    #[default]
    Overlay,
    /// A disk of its own, whose blocks the file system shares; a copy where it cannot.
    Reflink,
    /// A disk of its own that shares nothing.
    Copy,
}

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// A qcow2 whose backing file is the sealed image: takes as good as no time and space.
    Overlay,
    /// The file system shares the blocks until one side writes (`FICLONE`): takes no time and no space.
    Reflink,
    /// The data was copied, holes were kept.
    SparseCopy,
}

impl CloneMethod {
    /// As users see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::SparseCopy => "copy",
        }
    }
}

/// A finished clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// How it was made.
    pub method: CloneMethod,
    /// Why in this way.
    pub reason: String,
    /// What the clone is.
    pub format: DiskFormat,
    /// Size of the disk, bytes.
    pub size_bytes: u64,
    /// Data bytes that were copied; 0 for an overlay and a reflink.
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
    /// The qcow2 could not be made, or made larger.
    #[error("cannot make disk {path}: {problem}")]
    Qcow2 {
        /// The target.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
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

/// A clone to be made.
pub(crate) struct Cloning<'a> {
    /// The sealed disk.
    pub(crate) source: &'a File,
    /// Its path, absolute.
    pub(crate) path: &'a Path,
    /// What it is.
    pub(crate) format: DiskFormat,
    /// Size of the clone's disk, bytes; the caller has checked it.
    pub(crate) size_bytes: u64,
    /// How it is wanted.
    pub(crate) way: CloneWay,
    /// Whether so many bytes can be written and leave free what has to stay so: a copy is not begun, and not gone on with, without.
    pub(crate) has_room: &'a dyn Fn(u64) -> bool,
}

impl Cloning<'_> {
    /// Makes the clone at `target`. It appears complete or not at all: it is made beside its place, under a name that begins with
    /// a dot.
    pub(crate) fn make(&self, target: &Path, stop: &dyn Fn() -> bool) -> Result<Cloned, CloneError> {
        let failed = failed(target);
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
        durable::remove_all(&half).map_err(&failed)?;
        let result = self.fill(&half, target, stop).and_then(|cloned| {
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, &half, cwd, target, rustix::fs::RenameFlags::NOREPLACE)
                .map_err(|errno| failed(errno.into()))?;
            durable::sync_dir(parent).map_err(&failed)?;
            Ok(cloned)
        });
        result.inspect_err(|_| {
            let _ = std::fs::remove_file(&half); // The first error is the one to tell.
        })
    }

    fn fill(&self, half: &Path, target: &Path, stop: &dyn Fn() -> bool) -> Result<Cloned, CloneError> {
        let failed = failed(target);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(half)
            .map_err(&failed)?;
        let done = |method, reason: &str, format, copied_bytes| Cloned {
            method,
            reason: reason.to_owned(),
            format,
            size_bytes: self.size_bytes,
            copied_bytes,
        };
        if self.way == CloneWay::Overlay {
            let name = backing_name(target, self.path);
            let options = CreateOptions::overlay(self.size_bytes, name.to_string_lossy(), layer(self.format));
            // Made in memory: a file that nobody sees yet needs one sync, not one for each step of its making.
            let draft = rustix::fs::memfd_create("overlay", rustix::fs::MemfdFlags::CLOEXEC);
            let mut draft = File::from(draft.map_err(|errno| failed(errno.into()))?);
            disk_image::create(&draft, None, &options).map_err(|error| qcow2(target, &error))?;
            draft.rewind().map_err(&failed)?;
            let mut writer = SparseWriter::new(file);
            io::copy(&mut draft, &mut writer).map_err(&failed)?;
            let (file, _) = writer.finish(1).map_err(&failed)?;
            file.sync_all().map_err(&failed)?;
            return Ok(done(
                CloneMethod::Overlay,
                "the sealed image is below it",
                DiskFormat::Qcow2,
                0,
            ));
        }
        // Any refusal (other file system, no support) leads to the copy; a real fault will show there.
        let shared = match self.way {
            CloneWay::Copy => Err(rustix::io::Errno::OPNOTSUPP),
            _ => rustix::fs::ioctl_ficlone(&file, self.source),
        };
        let cloned = match shared {
            Ok(()) => done(CloneMethod::Reflink, "the file system shares blocks", self.format, 0),
            Err(errno) => {
                let copied = self.copy(&file, stop).map_err(&failed)?;
                let reason = match self.way {
                    CloneWay::Copy => "a full copy was asked for".to_owned(),
                    _ => format!("the file system cannot share blocks with the image ({errno})"),
                };
                done(CloneMethod::SparseCopy, &reason, self.format, copied)
            }
        };
        match self.format {
            DiskFormat::Raw => file.set_len(self.size_bytes).map_err(&failed)?,
            DiskFormat::Qcow2 => {
                let again = file.try_clone().map_err(&failed)?;
                let chain = Chain::of_file("clone", again, layer(self.format), true);
                disk_image::resize(&chain, self.size_bytes).map_err(|error| qcow2(target, &error))?;
            }
        }
        file.sync_all().map_err(&failed)?;
        Ok(cloned)
    }

    /// Copies what is not a hole, as long as there is room.
    fn copy(&self, file: &File, stop: &dyn Fn() -> bool) -> io::Result<u64> {
        let allocated = self.source.metadata()?.blocks() * STAT_BLOCK_BYTES;
        if !(self.has_room)(allocated) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let may_not = || stop() || !(self.has_room)(0);
        sparse::copy_data(self.source, file, &may_not).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted if !stop() => io::ErrorKind::StorageFull.into(),
            _ => error,
        })
    }
}

/// What `target` calls the image below it: relative where both are below one directory, so that a state directory may be moved as
/// a whole.
fn backing_name(target: &Path, disk: &Path) -> PathBuf {
    let Some(parent) = std::path::absolute(target)
        .ok()
        .and_then(|path| path.parent().map(Path::to_path_buf))
    else {
        return disk.to_path_buf();
    };
    let common = parent
        .components()
        .zip(disk.components())
        .take_while(|(one, other)| one == other)
        .count();
    // The root alone is nothing that moves.
    if common < 2 {
        return disk.to_path_buf();
    }
    let up = parent.components().skip(common).map(|_| Path::new(".."));
    let down = disk.components().skip(common).map(|part| Path::new(part.as_os_str()));
    up.chain(down).collect()
}

const fn layer(format: DiskFormat) -> spec::DiskFormat {
    match format {
        DiskFormat::Raw => spec::DiskFormat::Raw,
        DiskFormat::Qcow2 => spec::DiskFormat::Qcow2,
    }
}

fn failed(target: &Path) -> impl Fn(io::Error) -> CloneError + use<> {
    let path = target.to_path_buf();
    move |source| {
        let path = path.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CloneError::DiskFull(path),
            io::ErrorKind::AlreadyExists => CloneError::Exists(path),
            io::ErrorKind::Interrupted => CloneError::Cancelled(path),
            _ => CloneError::Io { path, source },
        }
    }
}

fn qcow2(target: &Path, error: &(dyn std::error::Error + 'static)) -> CloneError {
    let mut problem = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let full = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull);
        if full {
            return CloneError::DiskFull(target.to_path_buf());
        }
        problem = format!("{problem}: {error}");
        cause = error.source();
    }
    CloneError::Qcow2 {
        path: target.to_path_buf(),
        problem,
    }
}

/// A copy of a sealed file in another store, shared where the file system can. [`io::ErrorKind::Interrupted`] when `stop` says so.
pub(crate) fn copy_sealed(source: &Path, target: &Path, stop: &dyn Fn() -> bool) -> io::Result<()> {
    copy_shared(&File::open(source)?, target, stop)
}

/// The same of a file that is open.
pub(crate) fn copy_shared(from: &File, target: &Path, stop: &dyn Fn() -> bool) -> io::Result<()> {
    let to = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(target)?;
    if rustix::fs::ioctl_ficlone(&to, from).is_err() {
        sparse::copy_data(from, &to, stop)?;
    }
    Ok(())
}

impl Store {
    /// Makes a machine's disk of `size_bytes` at `target` (which must not exist) from an image's. It has the format that the
    /// result tells. Durable when it returns. When the future is dropped a copy stops soon after.
    ///
    /// # Errors
    /// See [`CloneError`].
    pub async fn make_disk(
        &self,
        digest: &ImageDigest,
        target: &Path,
        size_bytes: u64,
        way: CloneWay,
    ) -> Result<Cloned, CloneError> {
        let wanted = digest.clone();
        let found =
            self.ask(move |store| Ok((store.get(&wanted)?, store.open_disk(&wanted)?, store.disk_path(&wanted))));
        let (image, disk, path) = found.await.map_err(CloneError::Image)?;
        check_size(&image, size_bytes)?;
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let place = target.to_path_buf();
        let reserved_bytes = self.settings().reserved_bytes;
        let work = move || {
            // A backing file is found from the machine's directory, so it is named from the root on.
            let path = std::path::absolute(&path).map_err(failed(&place))?;
            let clone = Cloning {
                source: &disk,
                path: &path,
                format: image.disk.format,
                size_bytes,
                way,
                has_room: &|bytes| has_room(&place, bytes.saturating_add(reserved_bytes)),
            };
            clone.make(&place, &|| stop.is_cancelled())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(CloneError::Cancelled(target.to_path_buf())),
        }
    }
}

/// Whether so many bytes can be written beside `target`. An error shows where it is written.
fn has_room(target: &Path, bytes: u64) -> bool {
    let free = target.parent().map(durable::free_bytes);
    !matches!(free, Some(Ok(free)) if free < bytes)
}

fn check_size(image: &ImageRecord, size_bytes: u64) -> Result<(), CloneError> {
    if size_bytes < image.disk.virtual_bytes {
        return Err(CloneError::TooSmall {
            digest: image.digest.clone(),
            needed_bytes: image.disk.virtual_bytes,
            wanted_bytes: size_bytes,
        });
    }
    if !size_bytes.is_multiple_of(512) {
        return Err(CloneError::NotSectors(size_bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn overlays_name_the_image_relative_to_themselves() {
        let name = |target: &str, disk: &str| backing_name(Path::new(target), Path::new(disk)).display().to_string();
        assert_eq!(
            name(
                "/var/lib/karat/vms/1/root.qcow2",
                "/var/lib/karat/images/sha256/ab/disk.raw"
            ),
            "../../images/sha256/ab/disk.raw"
        );
        assert_eq!(name("/vms/1/root.qcow2", "/srv/images/x"), "/srv/images/x");
        assert_eq!(name("/srv/root.qcow2", "/srv/disk"), "disk");
    }

    #[test]
    fn grows_refuses_what_exists_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempfile_in(dir.path()).unwrap();
        source.set_len(1 << 20).unwrap();
        source.write_all_at(b"data", 4096).unwrap();
        let target = dir.path().join("disk");
        std::fs::write(dir.path().join(".disk.part"), "left by a crash").unwrap();
        let make = |target: &Path, has_room: &dyn Fn(u64) -> bool, stop: bool| {
            let clone = Cloning {
                source: &source,
                path: dir.path(),
                format: DiskFormat::Raw,
                size_bytes: 4 << 20,
                way: CloneWay::Reflink,
                has_room,
            };
            clone.make(target, &|| stop)
        };
        let cloned = make(&target, &|_| true, false).unwrap();
        assert_eq!(cloned.size_bytes, 4 << 20);
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!(bytes.len(), 4 << 20);
        assert_eq!(&bytes[4096..4100], b"data");
        let again = make(&target, &|_| true, false).unwrap_err();
        assert!(matches!(again, CloneError::Exists(_)));
        if cloned.method == CloneMethod::SparseCopy {
            let stopped = make(&dir.path().join("two"), &|_| true, true).unwrap_err();
            assert!(matches!(stopped, CloneError::Cancelled(_)));
            // Neither begun without room for all of it, nor gone on with when it went meanwhile.
            for has_room in [&(|bytes: u64| bytes == 0) as &dyn Fn(u64) -> bool, &|bytes: u64| {
                bytes > 0
            }] {
                let full = make(&dir.path().join("two"), has_room, false).unwrap_err();
                assert!(matches!(full, CloneError::DiskFull(_)), "{full}");
            }
        }
        let missing = make(&dir.path().join("no/disk"), &|_| true, false).unwrap_err();
        assert!(matches!(missing, CloneError::Io { .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the disk");
    }
}
