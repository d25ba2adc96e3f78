//! Events: appended by changes, read by number.

use api_types::{Event, EventReason, Subject};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Change, RegistryError, to_row};

/// Newest events that are kept; older ones go.
const EVENTS_KEPT: i64 = 10_000;
/// How often old events are removed: at every so many new ones.
const PRUNE_EVERY: i64 = 256;

/// What an event is about, for those who write one.
pub(crate) enum About<'a> {
    /// A machine, by id and name.
    Vm(spec::VmId, &'a str),
    /// A volume, by id and name.
    Volume(spec::VolumeId, &'a str),
    /// A snapshot, by id and name.
    Snapshot(spec::SnapshotId, &'a str),
    /// An image, by digest (or id, before it has one) and name.
    Image(&'a str, Option<&'a str>),
    /// A boot source, by name.
    BootSource(&'a str),
    /// An operation.
    Operation(spec::OperationId, &'a str),
    /// A move of a machine, by id and the machine's name.
    Migration(spec::MigrationId, &'a str),
    /// The daemon itself.
    Host,
}

/// An event that happens again.
struct Repeated {
    id: i64,
    first_at: String,
    count: u32,
}

impl About<'_> {
    fn subject(&self) -> Subject {
        let (collection, id, name) = match self {
            Self::Vm(id, name) => ("vms", id.to_string(), Some(*name)),
            Self::Volume(id, name) => ("volumes", id.to_string(), Some(*name)),
            Self::Snapshot(id, name) => ("snapshots", id.to_string(), Some(*name)),
            Self::Image(digest, name) => ("images", (*digest).to_owned(), *name),
            Self::BootSource(name) => ("boot-sources", (*name).to_owned(), Some(*name)),
            Self::Operation(id, name) => ("operations", id.to_string(), Some(*name)),
            Self::Migration(id, name) => ("migrations", id.to_string(), Some(*name)),
            Self::Host => ("host", "karatd".to_owned(), None),
        };
        Subject {
            collection: collection.to_owned(),
            id,
            name: name.map(str::to_owned),
        }
    }
}

impl Change<'_> {
    /// Appends an event. What was the last to happen to the same subject, and happens again, is one event with a count: it gets a new
    /// number, so that those who follow are told, and what it was before goes.
    pub(crate) fn event(&self, about: &About<'_>, reason: EventReason, message: &str) -> Result<(), RegistryError> {
        let subject = about.subject();
        let reason = serde_json::to_string(&reason)?;
        let before = self.repeated(&subject, &reason, message)?;
        let (first_at, count) = match before {
            Some(before) => {
                self.transaction
                    .execute("DELETE FROM events WHERE id = ?", [before.id])?;
                (before.first_at, before.count.saturating_add(1))
            }
            None => (self.now.to_string(), 1),
        };
        self.transaction.execute(
            "INSERT INTO events (at, collection, subject, name, reason, message, first_at, count) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                self.now.to_string(),
                subject.collection,
                subject.id,
                subject.name,
                reason,
                message,
                first_at,
                count
            ],
        )?;
        let id = self.transaction.last_insert_rowid();
        if id % PRUNE_EVERY == 0 {
            self.transaction
                .execute("DELETE FROM events WHERE id <= ?", [id - EVENTS_KEPT])?;
        }
        Ok(())
    }

    /// The last event of a subject, if it was the same.
    fn repeated(&self, subject: &Subject, reason: &str, message: &str) -> Result<Option<Repeated>, RegistryError> {
        let last = self
            .transaction
            .prepare_cached(
                "SELECT id, COALESCE(first_at, at), count, reason, message FROM events WHERE collection = ? AND subject = ? \
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row([&subject.collection, &subject.id], |row| {
                let is_same = row.get::<_, String>(3)? == reason && row.get::<_, String>(4)? == message;
                let repeated = Repeated {
                    id: row.get(0)?,
                    first_at: row.get(1)?,
                    count: row.get(2)?,
                };
                Ok(is_same.then_some(repeated))
            })
            .optional()?;
        Ok(last.flatten())
    }

    /// Up to `limit` events that came after the one with number `after`, oldest first.
    pub(crate) fn events_after(&self, after: u64, limit: u32) -> Result<Vec<Event>, RegistryError> {
        let after = to_row(after.min(i64::MAX.unsigned_abs()))?;
        let mut statement = self.transaction.prepare_cached(
            "SELECT id, at, collection, subject, name, reason, message, COALESCE(first_at, at), count FROM events WHERE id > ? ORDER BY id LIMIT ?",
        )?;
        let mut rows = statement.query(params![after, limit])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.push(read(row)?);
        }
        Ok(events)
    }
}

fn read(row: &Row<'_>) -> Result<Event, RegistryError> {
    let id: i64 = row.get(0)?;
    Ok(Event {
        id: id.unsigned_abs(),
        at: super::vms::timestamp(row, 1)?,
        subject: Subject {
            collection: row.get(2)?,
            id: row.get(3)?,
            name: row.get(4)?,
        },
        reason: serde_json::from_str(&row.get::<_, String>(5)?)?,
        message: row.get(6)?,
        first_at: super::vms::timestamp(row, 7)?,
        count: row.get(8)?,
    })
}

/// Number of the newest event there ever was; 0 before the first.
pub(super) fn newest(connection: &Connection) -> Result<u64, RegistryError> {
    let newest: Option<i64> = connection.query_row("SELECT MAX(id) FROM events", [], |row| row.get(0))?;
    Ok(newest.unwrap_or(0).unsigned_abs())
}
