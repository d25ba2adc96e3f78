//! Images from local files, below directories that the operator has named.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::error::SourceError;
use crate::identity::{Comparison, Identity};
use crate::opened::{Opened, Progress};

/// Size of the pieces read, bytes.
const PIECE: usize = 256 << 10;
/// Pieces read ahead of the consumer.
const PIECES_AHEAD: usize = 2;
/// Writes closer together than this may leave a file with the same date: two ticks of the slowest kernel clock.
const DATE_STEP: Duration = Duration::from_millis(20);
/// Tries when directories are renamed while a path is followed (`EAGAIN` of `openat2`).
const FOLLOW_TRIES: u32 = 16;

/// Directories that files may be read from, with all below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRoots(Arc<[PathBuf]>);

impl FileRoots {
    /// Takes absolute paths of directories; none at all forbids every file. Whether they exist is seen when a file is opened.
    ///
    /// # Errors
    /// [`SourceError::Path`] for one that is relative or has `..` in it.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Result<Self, SourceError> {
        let roots: Vec<PathBuf> = roots.into_iter().collect();
        match roots.iter().find(|root| !is_plain(root)) {
            Some(root) => Err(SourceError::Path {
                path: root.clone(),
                problem: "directories that files may be read from have to be absolute paths without '..'".to_owned(),
            }),
            None => Ok(Self(roots.into())),
        }
    }

    /// The innermost root that `path` is below of, and the rest of it.
    fn split<'a>(&'a self, path: &'a Path) -> Option<(&'a Path, &'a Path)> {
        let below = |root: &'a PathBuf| path.strip_prefix(root).ok().map(|rest| (root.as_path(), rest));
        let found = self.0.iter().filter_map(below);
        found.min_by_key(|(_, rest)| rest.components().count())
    }

    /// Opens the regular file `path` for reading. Links are followed as long as they stay below the root; mounts may be crossed.
    /// May block on slow file systems.
    ///
    /// # Errors
    /// [`SourceError::Path`] for a path that is not below a root or leads out of it, [`SourceError::NotAFile`], and
    /// [`SourceError::Io`].
    pub fn open_file(&self, path: &Path) -> Result<(File, Identity), SourceError> {
        let refuse = |problem: String| SourceError::Path {
            path: path.to_path_buf(),
            problem,
        };
        if !is_plain(path) {
            return Err(refuse("it has to be an absolute path without '..'".to_owned()));
        }
        let Some((root, rest)) = self.split(path) else {
            return Err(refuse(
                "it is below none of the directories that files may be read from".to_owned(),
            ));
        };
        if rest.as_os_str().is_empty() {
            return Err(SourceError::NotAFile(path.to_path_buf()));
        }
        let beneath = |error: Errno| match error {
            Errno::XDEV => refuse(format!("it leads out of {}", root.display())),
            Errno::LOOP => refuse("it goes over a link that must not be followed, or over too many".to_owned()),
            Errno::NXIO => SourceError::NotAFile(path.to_path_buf()),
            error => SourceError::io("open", path)(error.into()),
        };
        let flags = OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::PATH;
        let directory = rustix::fs::openat(CWD, root, flags, Mode::empty())
            .map_err(|error| SourceError::io("open", root)(error.into()))?;
        // First without effects: opening a device or a pipe for reading may have some.
        let flags = OFlags::CLOEXEC | OFlags::PATH;
        let place: File = follow(&directory, rest, flags).map_err(beneath)?.into();
        check_regular(&place, path)?;
        let flags = OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file: File = follow(&directory, rest, flags).map_err(beneath)?.into();
        let identity = check_regular(&file, path)?;
        Ok((file, identity))
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

fn follow(directory: &impl std::os::fd::AsFd, rest: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 1;
    loop {
        match rustix::fs::openat2(directory, rest, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < FOLLOW_TRIES => tries += 1,
            result => return result,
        }
    }
}

/// What the file is, if it is a regular one.
fn check_regular(file: &File, path: &Path) -> Result<Identity, SourceError> {
    let metadata = file.metadata().map_err(SourceError::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile(path.to_path_buf()));
    }
    Ok(Identity {
        length_bytes: Some(metadata.len()),
        etag: Some(format!(
            "\"{:x}-{:x}-{:x}-{:x}.{:09}\"",
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec()
        )),
        modified: None,
    })
}

/// One local file.
#[derive(Debug, Clone)]
pub struct FileSource {
    roots: FileRoots,
    path: PathBuf,
}

impl FileSource {
    /// Takes an absolute path, which has to be below one of `roots` when it is opened.
    #[must_use]
    pub fn new(roots: &FileRoots, path: PathBuf) -> Self {
        Self {
            roots: roots.clone(),
            path,
        }
    }

    /// Opens it at byte `offset`. With `expected`, from an earlier [`Opened::identity`] or of known length only, it has to be that
    /// file. A file that is written to while it is read is an error at its end.
    ///
    /// # Errors
    /// As [`FileRoots::open_file`], and [`SourceError::Changed`] and [`SourceError::WrongLength`].
    pub async fn open_at(&self, offset: u64, expected: Option<&Identity>) -> Result<Opened, SourceError> {
        let Self { roots, path } = self.clone();
        let (file, identity) = blocking(&self.path, move || roots.open_file(&path)).await?;
        if let Some(expected) = expected {
            check_same(&self.path, expected, &identity)?;
        }
        let length = identity.length_bytes.unwrap_or_default();
        if offset > length {
            return Err(wrong_length(&self.path, offset, length));
        }
        let progress = Progress::new(Some(length));
        let (sender, receiver) = mpsc::channel::<Result<Option<Bytes>, SourceError>>(PIECES_AHEAD);
        let reading = Reading {
            file,
            path: self.path.clone(),
            identity: identity.clone(),
            offset,
        };
        tokio::task::spawn_blocking(move || reading.run(&sender));
        let begin = Some((receiver, progress.clone(), self.path.clone()));
        let pieces = stream::unfold(begin, |state| async move {
            let (mut receiver, progress, path) = state?;
            match receiver.recv().await.unwrap_or_else(|| Err(cut_off(&path))) {
                Ok(Some(piece)) => {
                    progress.add_bytes(piece.len() as u64);
                    Some((Ok(piece), Some((receiver, progress, path))))
                }
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Opened::new(identity, offset, progress, pieces.boxed()))
    }

    /// What the file is.
    ///
    /// # Errors
    /// As [`FileRoots::open_file`].
    pub async fn probe(&self) -> Result<Identity, SourceError> {
        let Self { roots, path } = self.clone();
        blocking(&self.path, move || roots.open_file(&path).map(|(_, identity)| identity)).await
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn cut_off(path: &Path) -> SourceError {
    let source = io::Error::other("the program is ending");
    SourceError::io("read", path)(source)
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| cut_off(path))?
}

fn wrong_length(path: &Path, expected_bytes: u64, found: u64) -> SourceError {
    SourceError::WrongLength {
        subject: path.display().to_string(),
        expected_bytes,
        found: found.to_string(),
    }
}

fn check_same(path: &Path, expected: &Identity, found: &Identity) -> Result<(), SourceError> {
    match expected.compare(found) {
        Comparison::Same | Comparison::Unknown => Ok(()),
        Comparison::Changed(_) => Err(SourceError::Changed {
            subject: path.display().to_string(),
            difference: "it was written to or replaced".to_owned(),
        }),
        Comparison::Length {
            expected_bytes,
            found_bytes,
        } => Err(wrong_length(path, expected_bytes, found_bytes)),
    }
}

/// A file on its way to a consumer.
struct Reading {
    file: File,
    path: PathBuf,
    identity: Identity,
    offset: u64,
}

impl Reading {
    fn run(mut self, sender: &mpsc::Sender<Result<Option<Bytes>, SourceError>>) {
        self.settle();
        loop {
            let piece = self.piece();
            let last = !matches!(piece, Ok(Some(_)));
            if sender.blocking_send(piece).is_err() || last {
                return;
            }
        }
    }

    /// Waits until whatever is written from now on gets another date than the one recorded.
    fn settle(&self) {
        let modified = self.file.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < DATE_STEP)) {
            std::thread::sleep(DATE_STEP);
        }
    }

    fn piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        let length = self.identity.length_bytes.unwrap_or_default();
        let wanted = usize::try_from(length - self.offset).unwrap_or(PIECE).min(PIECE);
        let mut buffer = vec![0; wanted];
        let count = loop {
            match self.file.read_at(&mut buffer, self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(SourceError::io("read", &self.path))?,
            }
        };
        if count == 0 {
            // The end as it was at the beginning, or an earlier one.
            check_same(&self.path, &self.identity, &check_regular(&self.file, &self.path)?)?;
            if self.offset != length {
                return Err(wrong_length(&self.path, length, self.offset));
            }
            return Ok(None);
        }
        buffer.truncate(count);
        self.offset += count as u64;
        Ok(Some(buffer.into()))
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
