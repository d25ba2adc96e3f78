//! The files of uploads: one with what was announced, and one with what has come.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api_types::{ErrorCode, ImportOptions};
use image_catalog::ImageId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::OperationId;

use crate::failure::Failure;
use crate::host::Host;

/// Mode of the files: what is sent may be secret.
const PRIVATE: u32 = 0o600;
/// Suffix of what was announced.
const WISH: &str = "json";
/// Suffix of what has come.
const DATA: &str = "data";
/// Suffix of what is being written.
const UNFINISHED: &str = "new";

/// What was announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) image: ImageId,
    /// Bytes in all.
    pub(super) length: u64,
    pub(super) label: Option<String>,
    pub(super) options: ImportOptions,
    pub(super) created_at: Timestamp,
}

/// The directory of all uploads. Everything here blocks.
pub(super) struct Files(PathBuf);

impl Host {
    pub(super) fn upload_files(&self) -> Files {
        Files(self.0.context.config.state_dir.join("uploads"))
    }
}

impl Files {
    fn path(&self, id: &str, suffix: &str) -> PathBuf {
        self.0.join(id).with_extension(suffix)
    }

    /// All that can be read.
    pub(super) fn all(&self) -> Vec<Session> {
        let wishes = self.wishes().into_iter();
        wishes.filter_map(|(_, path)| read(&path).ok().flatten()).collect()
    }

    /// Those of which nobody can tell what was announced: what was sent of them stays until somebody looks.
    pub(super) fn unreadable(&self) -> Vec<(String, io::Error)> {
        let wishes = self.wishes().into_iter();
        wishes.filter_map(|(id, path)| Some((id, read(&path).err()?))).collect()
    }

    /// What was announced, by id.
    fn wishes(&self) -> Vec<(String, PathBuf)> {
        let rows = std::fs::read_dir(&self.0).into_iter().flatten();
        let paths = rows.filter_map(|row| row.ok().map(|row| row.path()));
        let wishes = paths.filter(|path| path.extension().is_some_and(|suffix| suffix == WISH));
        wishes.map(|path| (id_of(&path), path)).collect()
    }

    /// One of them.
    pub(super) fn find(&self, id: &str) -> Result<Option<Session>, Failure> {
        // Whatever a caller sends, it names a file of this directory, or none.
        let Ok(id) = id.parse::<OperationId>() else {
            return Ok(None);
        };
        let path = self.path(&id.to_string(), WISH);
        read(&path).map_err(|error| {
            let text = format!(
                "what was announced of the upload can not be read ({}: {error}); what was sent is kept: put that file right, or remove \
                 it, and begin anew",
                path.display()
            );
            Failure::new(ErrorCode::Internal, text)
        })
    }

    /// Makes one of which nothing has come.
    pub(super) fn make(&self, session: &Session) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        create(&self.path(&session.id, DATA))?;
        let new = self.path(&session.id, UNFINISHED);
        let mut file = create(&new)?;
        file.write_all(&serde_json::to_vec(session)?)?;
        file.sync_all()?;
        std::fs::rename(new, self.path(&session.id, WISH))?;
        File::open(&self.0)?.sync_all()
    }

    /// How many bytes have come.
    pub(super) fn offset(&self, id: &str) -> u64 {
        std::fs::metadata(self.path(id, DATA)).map_or(0, |data| data.len())
    }

    /// When something came last.
    pub(super) fn touched(&self, id: &str) -> io::Result<Timestamp> {
        let modified = std::fs::metadata(self.path(id, DATA))?.modified()?;
        modified.try_into().map_err(io::Error::other)
    }

    /// To be read from its beginning.
    pub(super) fn open(&self, id: &str) -> io::Result<File> {
        File::open(self.path(id, DATA))
    }

    /// To be written to at its end.
    pub(super) fn append(&self, id: &str) -> io::Result<File> {
        OpenOptions::new().append(true).open(self.path(id, DATA))
    }

    /// Removes one; what can not be removed now goes later.
    pub(super) fn remove(&self, id: &str) {
        for suffix in [WISH, DATA] {
            if let Err(error) = std::fs::remove_file(self.path(id, suffix))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(id, %error, "an upload can not be removed; it is tried again");
            }
        }
    }

    /// Removes what was left by daemons that ended while they made or removed one. Not while one is made. What was announced stays, and
    /// what was sent of it, whether that can be read or not.
    pub(super) fn clear(&self) {
        let rows: io::Result<Vec<_>> = std::fs::read_dir(&self.0).and_then(Iterator::collect);
        // As long as not all is seen nothing is left over.
        let Ok(rows) = rows else { return };
        let paths: Vec<_> = rows.iter().map(std::fs::DirEntry::path).collect();
        let announced = |id: &str| {
            let wish = self.path(id, WISH);
            paths.contains(&wish)
        };
        for path in &paths {
            if !announced(&id_of(path)) && !is_fresh(path) {
                let _ = std::fs::remove_file(path); // It is tried again.
            }
        }
        for (id, error) in self.unreadable() {
            let path = self.path(&id, WISH);
            let path = path.display();
            tracing::warn!(%path, %error, "what was announced of an upload can not be read: what was sent of it is kept");
        }
    }
}

fn id_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// Whether somebody may be making it just now.
fn is_fresh(path: &Path) -> bool {
    const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);
    let modified = std::fs::metadata(path).and_then(|data| data.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < MINUTE))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(path)
}

/// Nothing where there is none; an error where it is of another release, or damaged.
fn read(path: &Path) -> io::Result<Option<Session>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why an upload could not be `done`.
pub(super) fn failure(done: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        // Somebody gave it up meanwhile.
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Internal,
    };
    Failure::new(code, format!("the upload can not be {done}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_found_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files(dir.path().join("uploads"));
        let session = Session {
            id: OperationId::random().to_string(),
            image: ImageId::random(),
            length: 5,
            label: Some("a".to_owned()),
            options: ImportOptions::default(),
            created_at: Timestamp::now(),
        };
        files.make(&session).unwrap();
        files.append(&session.id).unwrap().write_all(b"abc").unwrap();
        assert_eq!(files.offset(&session.id), 3);
        assert_eq!(files.find(&session.id), Ok(Some(session.clone())));
        for bad in ["../x", "", "x"] {
            assert_eq!(files.find(bad), Ok(None), "{bad}");
        }
        // What a daemon left half made goes once it is not fresh; what is known stays.
        let stray = dir.path().join("uploads/stray.data");
        std::fs::write(&stray, "x").unwrap();
        files.clear();
        assert!(stray.exists());
        age(&stray);
        files.clear();
        assert!(!stray.exists());
        assert_eq!(files.all(), std::slice::from_ref(&session));
        files.remove(&session.id);
        assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
    }

    fn age(path: &Path) {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
    }

    #[test]
    fn what_was_sent_stays_when_what_was_announced_can_not_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files(dir.path().to_owned());
        let id = OperationId::random().to_string();
        let (wish, data) = (files.path(&id, WISH), files.path(&id, DATA));
        std::fs::write(&data, "half a disk").unwrap();
        // As a later release would write it.
        std::fs::write(&wish, format!(r#"{{"id": "{id}", "since": 7}}"#)).unwrap();
        age(&wish);
        age(&data);
        files.clear();
        assert!(wish.exists() && data.exists());
        let told = files.find(&id).unwrap_err();
        assert!(told.detail.contains("what was sent is kept"), "{told}");
        assert_eq!(files.all(), []);
        let unreadable = files.unreadable();
        assert_eq!(unreadable.len(), 1);
        assert_eq!(unreadable[0].0, id);
        // Who has looked decides.
        std::fs::remove_file(wish).unwrap();
        files.clear();
        assert!(!data.exists());
    }
}
