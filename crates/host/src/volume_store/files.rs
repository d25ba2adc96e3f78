//! Where the bytes of volumes are.
//!
//! ```text
//! <state>/volumes/<id>.raw, .qcow2   a volume; locked by whoever has it open
//! <state>/volumes/<id>.upload        what has arrived of an upload
//! <state>/volumes/<id>.part          a volume in the making; takes its place by a rename when it is whole and durable
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api_types::ErrorCode;
use rustix::fs::FlockOperation;
use spec::{DiskFormat, VolumeId};
use uring::blocking::LockKind;

use crate::context::Context;
use crate::failure::Failure;
use crate::registry::{Sizes, VolumeRecord};

/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// Suffix of an upload.
const UPLOAD: &str = "upload";
/// Suffix of an upload that was verified: what is in it may be changed from then on, so it is not verified again.
const TAKEN: &str = "taken";
/// Suffix of a volume in the making.
const PART: &str = "part";

/// The files of one volume.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    id: VolumeId,
}

impl Files {
    pub(crate) fn of(context: &Context, id: VolumeId) -> Self {
        let dir = context.volumes_dir();
        Self { dir, id }
    }

    /// The volume itself.
    pub(crate) fn volume(&self, format: DiskFormat) -> PathBuf {
        self.with(suffix(format))
    }

    /// What has arrived of an upload.
    pub(crate) fn upload(&self) -> PathBuf {
        self.with(UPLOAD)
    }

    /// An upload that was verified.
    pub(crate) fn taken(&self) -> PathBuf {
        self.with(TAKEN)
    }

    fn part(&self) -> PathBuf {
        self.with(PART)
    }

    fn with(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.id))
    }

    /// A new file for a volume in the making; what a daemon that was cut off made of it is gone.
    pub(crate) fn begin(&self) -> Result<File, Failure> {
        let path = self.part();
        remove(&path)?;
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        made.map_err(|error| failure("be made", &path, &error))
    }

    /// The volume in the making is whole: makes it durable and puts it in place.
    pub(crate) fn finish(&self, file: &File, format: DiskFormat) -> Result<(), Failure> {
        let (part, whole) = (self.part(), self.volume(format));
        file.sync_all().map_err(|error| failure("be written", &part, &error))?;
        self.place(&part, &whole)
    }

    /// The upload was verified: from here on it may be changed. Durable before anything is.
    pub(crate) fn verified(&self) -> Result<(), Failure> {
        self.place(&self.upload(), &self.taken())
    }

    /// The verified upload is a volume as it is: puts it in place.
    pub(crate) fn place_taken(&self, file: &File, format: DiskFormat) -> Result<(), Failure> {
        let (taken, whole) = (self.taken(), self.volume(format));
        file.sync_all().map_err(|error| failure("be written", &taken, &error))?;
        self.place(&taken, &whole)
    }

    fn place(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        std::fs::rename(from, to)
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(|error| failure("be put in place", to, &error))
    }

    /// Removes everything.
    pub(crate) fn remove_all(&self) -> Result<(), Failure> {
        for suffix in ["raw", "qcow2", UPLOAD, TAKEN, PART] {
            remove(&self.with(suffix))?;
        }
        Ok(())
    }

    /// Makes a verified upload of `sent_bytes` what it was before, for another try, and removes what was made of it.
    pub(crate) fn give_back(&self, sent_bytes: Option<u64>) -> Result<(), Failure> {
        remove(&self.part())?;
        let (taken, upload) = (self.taken(), self.upload());
        let failed = |error: io::Error| failure("be given back", &taken, &error);
        match File::options().write(true).open(&taken) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => {
                let file = opened.map_err(failed)?;
                if let Some(bytes) = sent_bytes {
                    file.set_len(bytes).map_err(failed)?;
                }
            }
        }
        self.place(&taken, &upload)
    }

    /// Removes a verified upload.
    pub(crate) fn remove_taken(&self) -> Result<(), Failure> {
        remove(&self.taken())
    }

    /// What they take. Blocks shortly.
    pub(crate) fn sizes(&self) -> Sizes {
        let blocks = |path: PathBuf| {
            path.metadata()
                .map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
        };
        Sizes {
            usage_bytes: ["raw", "qcow2", UPLOAD, TAKEN, PART]
                .into_iter()
                .map(|suffix| blocks(self.with(suffix)))
                .sum(),
            received_bytes: self.upload().metadata().map_or(0, |metadata| metadata.len()),
        }
    }
}

/// Opens the file of a volume that is ready, and keeps others from it: from writing, or from using it at all if it is opened
/// `to_write`. Whoever runs a machine with it has it locked likewise.
pub(crate) fn open(context: &Context, record: &VolumeRecord, to_write: bool) -> Result<File, Failure> {
    let format = record.format.unwrap_or(DiskFormat::Raw);
    let path = Files::of(context, record.id).volume(format);
    let opened = File::options().read(true).write(to_write).open(&path);
    let file = opened.map_err(|error| failure("be opened", &path, &error))?;
    // As machines lock theirs: what the daemon looks at, and what other programs that know disk images do.
    let (operation, kind) = if to_write {
        (FlockOperation::NonBlockingLockExclusive, LockKind::Exclusive)
    } else {
        (FlockOperation::NonBlockingLockShared, LockKind::Shared)
    };
    let locked = rustix::fs::flock(&file, operation).map_err(io::Error::from);
    match locked.and_then(|()| uring::blocking::lock(&file, kind)) {
        Ok(()) => Ok(file),
        Err(error) if is_taken(&error) => Err(Failure::new(
            ErrorCode::InUse,
            format!(
                "volume {} is in use: a machine runs with it, or it is being copied; stop the machine, or wait for the copy",
                record.name()
            ),
        )),
        Err(error) => Err(failure("be locked", &path, &error)),
    }
}

/// A lock that somebody else has is `EWOULDBLOCK` by flock(2) and `EACCES` or `EAGAIN` by fcntl(2).
fn is_taken(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::ACCESS)
    )
}

/// Removes what is unfinished of volumes that are not known. A whole volume is never without a record, unless the records were
/// put back from an older copy: then it is data of somebody's, and stays.
pub(crate) fn clear(context: &Context, known: &[VolumeRecord]) -> io::Result<()> {
    for entry in std::fs::read_dir(context.volumes_dir())? {
        let path = entry?.path();
        let part = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
        let id = part(path.file_stem()).and_then(|stem| stem.parse::<VolumeId>().ok());
        if id.is_none_or(|id| known.iter().any(|record| record.id == id)) {
            continue;
        }
        if matches!(part(path.extension()).as_deref(), Some(UPLOAD | TAKEN | PART)) {
            tracing::info!(path = %path.display(), "unfinished file of an unknown volume is removed");
            std::fs::remove_file(&path)?;
        } else {
            tracing::warn!(
                path = %path.display(),
                "a volume that no record knows is kept: copy it into a new one with karat volume upload, or remove the file"
            );
        }
    }
    Ok(())
}

pub(crate) const fn suffix(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure("be removed", path, &error)),
        _ => Ok(()),
    }
}

/// `path` can not … .
pub(crate) fn failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let code = code(error);
    Failure::new(code, format!("{} can not {what}: {error}", path.display()))
}

/// What kind of trouble an error of the file system is.
pub(crate) fn code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorCode::NoSpace,
        _ => ErrorCode::Internal,
    }
}
