//! Where the bytes of volumes are.
//!
//! ```text
//! <state>/volumes/<id>.raw, .qcow2   a volume; locked by whoever has it open
//! <state>/volumes/<id>.<n>.qcow2     a later file of it: an overlay, or one that it was moved to
//! <state>/volumes/<id>.<n>.pivot     tells, once it is not empty, that file n is the volume
//! <state>/volumes/<id>.upload        what has arrived of an upload
//! <state>/volumes/<id>.part          a volume in the making; takes its place by a rename when it is whole and durable
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::ErrorCode;
use rustix::fs::FlockOperation;
use spec::{DiskFormat, VolumeId};
use uring::blocking::LockKind;

use crate::context::Context;
use crate::failure::Failure;
use crate::registry::{LayerFile, Sizes, VolumeRecord};

/// How often a lock that somebody has is tried again, and after how long: a fifth of a second in all.
const LOCK_TRIES_MAX: u32 = 10;
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// Suffix of an upload.
const UPLOAD: &str = "upload";
/// Suffix of an upload that was verified: what is in it may be changed from then on, so it is not verified again.
const TAKEN: &str = "taken";
/// Suffix of a volume in the making.
const PART: &str = "part";
/// Suffix of the note of a pivot.
const NOTE: &str = "pivot";

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
        self.with(format.suffix())
    }

    /// One file of the volume.
    pub(crate) fn layer(&self, layer: LayerFile) -> PathBuf {
        match layer.number {
            0 => self.volume(layer.format),
            number => self.with(&format!("{number}.{}", layer.format.suffix())),
        }
    }

    /// Its name in the directory that all files of volumes are in.
    pub(crate) fn name(&self, layer: LayerFile) -> String {
        let path = self.layer(layer);
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where a machine notes that it went on in `layer`.
    pub(crate) fn note(&self, layer: LayerFile) -> PathBuf {
        self.with(&format!("{}.{NOTE}", layer.number))
    }

    /// A new file of the volume that is known not to be a part of it yet; durably there when this returns.
    pub(crate) fn add(&self, path: &Path) -> Result<File, Failure> {
        remove(path)?;
        let made = create(path)?;
        self.sync().map_err(|error| failure("be made", path, &error))?;
        Ok(made)
    }

    /// Removes files that are not part of the volume any more, and the note that `top` is: its record tells that now.
    pub(crate) fn drop_layers(&self, layers: &[LayerFile], top: LayerFile) -> Result<(), Failure> {
        remove(&self.note(top))?;
        for layer in layers {
            remove(&self.layer(*layer))?;
            remove(&self.note(*layer))?;
        }
        self.sync().map_err(|error| failure("be written", &self.dir, &error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// What has arrived of an upload.
    pub(crate) fn upload(&self) -> PathBuf {
        self.with(UPLOAD)
    }

    /// An upload that was verified.
    pub(crate) fn taken(&self) -> PathBuf {
        self.with(TAKEN)
    }

    /// A volume in the making.
    pub(crate) fn part(&self) -> PathBuf {
        self.with(PART)
    }

    fn with(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.id))
    }

    /// A new file for a volume in the making; what a daemon that was cut off made of it is gone.
    pub(crate) fn begin(&self) -> Result<File, Failure> {
        let path = self.part();
        remove(&path)?;
        create(&path)
    }

    /// The volume in the making is whole: makes it durable and puts it in place.
    pub(crate) fn finish(&self, file: &File, format: DiskFormat) -> Result<(), Failure> {
        let (part, whole) = (self.part(), self.volume(format));
        file.sync_all().map_err(|error| failure("be written", &part, &error))?;
        self.place(&part, &whole)
    }

    /// What a machine process filled is whole. It is in place already where a daemon was cut off after that.
    pub(crate) fn finish_part(&self, format: DiskFormat) -> Result<(), Failure> {
        let part = self.part();
        match File::open(&part) {
            Ok(file) => self.finish(&file, format),
            Err(_) if self.volume(format).exists() => Ok(()),
            Err(error) => Err(failure("be opened", &part, &error)),
        }
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
            .and_then(|()| self.sync())
            .map_err(|error| failure("be put in place", to, &error))
    }

    /// Removes everything.
    pub(crate) fn remove_all(&self) -> Result<(), Failure> {
        let own = format!("{}.", self.id);
        let entries = std::fs::read_dir(&self.dir).map_err(|error| failure("be read", &self.dir, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failure("be read", &self.dir, &error))?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&own)) {
                remove(&entry.path())?;
            }
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
    pub(crate) fn sizes(&self, record: &VolumeRecord) -> Sizes {
        let blocks = |path: PathBuf| {
            path.metadata()
                .map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
        };
        Sizes {
            usage_bytes: record
                .files()
                .into_iter()
                .chain(record.job.and_then(|job| job.task.new_file()))
                .map(|layer| self.layer(layer))
                .chain([self.upload(), self.taken(), self.part()])
                .map(blocks)
                .sum(),
            received_bytes: self.upload().metadata().map_or(0, |metadata| metadata.len()),
        }
    }
}

/// Opens the file of a volume that is ready, and keeps others from it: from writing, or from using it at all if it is opened
/// `to_write`. Whoever runs a machine with it has it locked likewise.
pub(crate) fn open(context: &Context, record: &VolumeRecord, to_write: bool) -> Result<File, Failure> {
    open_layer(context, record, record.top(), to_write)
}

/// The same of one of its files.
pub(crate) fn open_layer(
    context: &Context,
    record: &VolumeRecord,
    layer: LayerFile,
    to_write: bool,
) -> Result<File, Failure> {
    let path = Files::of(context, record.id).layer(layer);
    let opened = File::options().read(true).write(to_write).open(&path);
    let file = opened.map_err(|error| failure("be opened", &path, &error))?;
    let mut locked = lock(&file, to_write);
    // The kernel may let go of a lock a moment after whoever had it is done.
    for _ in 0..LOCK_TRIES_MAX {
        let Ok(false) = locked else { break };
        std::thread::sleep(LOCK_AGAIN_AFTER);
        locked = lock(&file, to_write);
    }
    match locked {
        Ok(true) => Ok(file),
        Ok(false) => Err(Failure::new(
            ErrorCode::InUse,
            format!(
                "volume {} is in use: a machine runs with it, or it is being copied; stop the machine, or wait for the copy",
                record.name()
            ),
        )),
        Err(error) => Err(failure("be locked", &path, &error)),
    }
}

/// Locks a file of a volume; false when somebody has it in a way that excludes this.
pub(crate) fn lock(file: &File, to_write: bool) -> io::Result<bool> {
    // As machines lock theirs: what the daemon looks at, and what other programs that know disk images do.
    let (operation, kind) = if to_write {
        (FlockOperation::NonBlockingLockExclusive, LockKind::Exclusive)
    } else {
        (FlockOperation::NonBlockingLockShared, LockKind::Shared)
    };
    let locked = rustix::fs::flock(file, operation).map_err(io::Error::from);
    match locked.and_then(|()| uring::blocking::lock(file, kind)) {
        Ok(()) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(error),
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
        let id = part(path.file_name()).and_then(|name| name.split('.').next()?.parse::<VolumeId>().ok());
        if id.is_none_or(|id| known.iter().any(|record| record.id == id)) {
            continue;
        }
        if matches!(part(path.extension()).as_deref(), Some(UPLOAD | TAKEN | PART)) {
            tracing::info!(path = %path.display(), "unfinished file of an unknown volume is removed");
            // What can not be removed is no reason to serve nobody.
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "can not be removed");
            }
        } else {
            tracing::warn!(
                path = %path.display(),
                "a volume that no record knows is kept: copy it into a new one with karat volume upload, or remove the file"
            );
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, Failure> {
    let made = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    made.map_err(|error| failure("be made", path, &error))
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
