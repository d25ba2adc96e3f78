//! Snapshots of machines.

use api_types::{EventReason, Snapshot, SnapshotState};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use spec::SnapshotId;

use super::{About, Change, RegistryError};

/// A snapshot as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRow {
    /// What the API shows; sizes of files are looked up when it does.
    pub(crate) snapshot: Snapshot,
    /// Whether the machine's disk needed nothing of its image.
    pub(crate) stands_alone: bool,
    /// The store with the image that it was made from, where that is not the default one.
    #[serde(default)]
    pub(crate) store: Option<String>,
    /// The machine ran when it was begun, so that it has to go on.
    pub(crate) ran: bool,
}

impl SnapshotRow {
    pub(crate) fn id(&self) -> SnapshotId {
        self.snapshot.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.snapshot.name
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.snapshot.state == SnapshotState::Ready
    }
}

const COLUMNS: &str = "record, revision";

impl Change<'_> {
    /// Adds a snapshot; a name that is taken is a conflict.
    pub(crate) fn insert_snapshot(&self, row: &SnapshotRow) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT INTO snapshots (id, name, image_digest, record, revision) VALUES (?, ?, ?, ?, 1)",
            params![
                row.id().to_string(),
                row.name(),
                row.snapshot.image_digest,
                serde_json::to_string(row)?,
            ],
        )?;
        Ok(())
    }

    /// Writes how a snapshot is, and moves its revision on.
    pub(crate) fn update_snapshot(&self, row: &SnapshotRow) -> Result<(), RegistryError> {
        self.transaction.execute(
            "UPDATE snapshots SET record = ?, revision = revision + 1 WHERE id = ?",
            params![serde_json::to_string(row)?, row.id().to_string()],
        )?;
        Ok(())
    }

    /// Removes a snapshot's record.
    pub(crate) fn delete_snapshot(&self, id: SnapshotId) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM snapshots WHERE id = ?", [id.to_string()])?;
        Ok(())
    }

    /// A snapshot by name or id.
    pub(crate) fn snapshot(&self, name_or_id: &str) -> Result<Option<SnapshotRow>, RegistryError> {
        // As with machines, the id wins.
        let query = format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        self.transaction
            .prepare_cached(&query)?
            .query_row([name_or_id], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All snapshots, by name.
    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotRow>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots ORDER BY name"))?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(row)?);
        }
        Ok(found)
    }

    /// Removes the records of snapshots whose making was cut off, and returns them: their operations are over.
    pub(crate) fn take_over_snapshots(&self) -> Result<Vec<SnapshotRow>, RegistryError> {
        let mut cut_off = self.snapshots()?;
        cut_off.retain(|row| !row.is_ready());
        for row in &cut_off {
            self.delete_snapshot(row.id())?;
            let text = format!(
                "snapshot {} was not made: the daemon was restarted meanwhile",
                row.name()
            );
            self.event(&About::Snapshot(row.id(), row.name()), EventReason::Deleted, &text)?;
        }
        Ok(cut_off)
    }
}

fn read(row: &Row<'_>) -> Result<SnapshotRow, RegistryError> {
    let mut found: SnapshotRow = serde_json::from_str(&row.get::<_, String>(0)?)?;
    found.snapshot.revision = row.get::<_, i64>(1)?.unsigned_abs();
    Ok(found)
}
