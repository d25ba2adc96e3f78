//! What the daemon knows, in one SQLite file: machines, volumes, images, boot sources, operations, events.
//!
//! Every change is one transaction that also holds the events it causes, so that a reader who saw an event finds what it
//! tells of. Work happens on a thread of its own, one at a time; a change is on the disk when it returns (WAL, `synchronous =
//! FULL`).

mod ballast;
mod cache_rows;
mod events;
mod holders;
mod image_rows;
mod keys;
mod metadef_rows;
mod migration_rows;
mod operations;
mod references;
mod schema;
mod snapshot_rows;
mod source_rows;
mod vms;
mod volume_record;
mod volumes;

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use api_types::ErrorCode;
use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use ballast::Ballast;

pub(crate) use cache_rows::{CacheRow, CacheState};
pub(crate) use events::About;
pub(crate) use holders::Holder;
pub(crate) use image_rows::{ImageRow, ImportJob};
pub use keys::KeptAnswer;
pub use operations::OperationRecord;
pub(crate) use snapshot_rows::SnapshotRow;
pub(crate) use source_rows::{Known, SourceRow, written};
pub(crate) use volume_record::{Job, LayerFile, Sizes, Task, VolumeRecord};

use crate::failure::Failure;

/// Mode of its files.
const PRIVATE: u32 = 0o600;

/// Why the registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The database refused.
    #[error("the registry can not be read or written")]
    Database(#[from] rusqlite::Error),
    /// A row holds what this program does not understand.
    #[error("the registry holds a row that is not understood")]
    Malformed(#[source] serde_json::Error),
    /// Written by a newer program.
    #[error("the registry has schema version {found}, this program knows up to {known}: start the newer karatd again")]
    TooNew {
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A number does not fit the database's integers.
    #[error("the registry can not hold the number {0}")]
    Number(u64),
    /// No thread could be started for it.
    #[error("the registry's thread can not be started")]
    NoWorker(#[source] io::Error),
    /// The work was lost: the daemon is shutting down, or a defect ended it.
    #[error("the registry's worker ended")]
    WorkerGone,
}

impl From<serde_json::Error> for RegistryError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error)
    }
}

impl RegistryError {
    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// The row would break a uniqueness rule.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Database(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation))
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        tracing::error!(error = crate::failure::chain(&error), "registry");
        if error.is_disk_full() {
            let text = "the disk is full, so nothing can be written down; space was put aside for this: ask once more, then make room";
            return Self::new(ErrorCode::NoSpace, text);
        }
        Self::of(ErrorCode::Internal, &error)
    }
}

/// The connection, and the space it may fall back on.
struct Database {
    connection: Connection,
    ballast: Ballast,
}

/// The open registry; clones share it.
#[derive(Clone)]
pub(crate) struct Registry {
    database: Arc<Mutex<Database>>,
    newest_event: watch::Sender<u64>,
    worker: mpsc::Sender<Work>,
}

/// What the registry's thread is given.
type Work = Box<dyn FnOnce() + Send>;

/// One transaction and the time at which it happens.
pub(crate) struct Change<'a> {
    transaction: Transaction<'a>,
    now: Timestamp,
}

impl Registry {
    /// Opens or makes the file, and brings its schema up to date. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, RegistryError> {
        if let Err(error) = keep_private(path) {
            tracing::warn!(path = %path.display(), %error, "the registry can not be kept from others");
        }
        let mut connection = Connection::open(path)?;
        schema::prepare(&mut connection)?;
        let newest = events::newest(&connection)?;
        Ok(Self {
            database: Arc::new(Mutex::new(Database {
                connection,
                ballast: Ballast::beside(path),
            })),
            newest_event: watch::Sender::new(newest),
            worker: worker()?,
        })
    }

    /// Runs `work` in one transaction; an error from it changes nothing.
    pub(crate) async fn change<T, E>(
        &self,
        work: impl FnOnce(&Change<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<RegistryError> + Send + 'static,
    {
        let this = self.clone();
        let (reply, answer) = oneshot::channel();
        let work = move || {
            let _ = reply.send(this.change_now(work)); // Whoever asked may have gone.
        };
        if self.worker.send(Box::new(work)).is_err() {
            return Err(RegistryError::WorkerGone.into());
        }
        answer.await.unwrap_or_else(|_| Err(RegistryError::WorkerGone.into()))
    }

    /// [`Registry::change`] for callers that may block.
    pub(crate) fn change_now<T, E: From<RegistryError>>(
        &self,
        work: impl FnOnce(&Change<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let Database { connection, ballast } = &mut *database;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(RegistryError::from)?;
        let change = Change {
            transaction,
            now: Timestamp::now(),
        };
        let value = work(&change)?;
        let newest = events::newest(&change.transaction);
        change.transaction.commit().map_err(|error| {
            let error = RegistryError::from(error);
            if error.is_disk_full() && ballast.drop_now() {
                tracing::error!("the disk is full; the space put aside for this is given up: make room");
            }
            error
        })?;
        ballast.take();
        let newest = newest?;
        self.newest_event.send_if_modified(|known| {
            let moved = *known != newest;
            *known = newest;
            moved
        });
        Ok(value)
    }

    /// The id of the newest event; changes whenever there is a newer one.
    pub(crate) fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.subscribe()
    }
}

/// Starts the thread that makes the changes: one of its own, since those for other work that blocks may all be taken by copies
/// and slow senders, and nothing could be started, stopped or listed then. It ends with the last handle.
fn worker() -> Result<mpsc::Sender<Work>, RegistryError> {
    let (worker, changes) = mpsc::channel::<Work>();
    let run = move || changes.into_iter().for_each(|change| change());
    let started = std::thread::Builder::new().name("registry".to_owned()).spawn(run);
    started.map_err(RegistryError::NoWorker)?;
    Ok(worker)
}

/// Sees to it that only this user can read the database, or lock it; its log and index, once made, get the same mode.
fn keep_private(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(PRIVATE);
    options.open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::set_permissions(&name, Permissions::from_mode(PRIVATE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Where the registry is kept.
pub(crate) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("karat.db")
}

/// A counter as the database keeps it.
fn to_row(number: u64) -> Result<i64, RegistryError> {
    i64::try_from(number).map_err(|_| RegistryError::Number(number))
}

#[cfg(test)]
mod tests;
