//! Image records, and the aliases that lead to them.

use api_types::ImageImport;
use image_catalog::{ImageId, ImageRecord, ImageState, Placement, SavedState};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use spec::OperationId;

use super::{Change, RegistryError, to_row};

const COLUMNS: &str = "record, revision";

/// An image as it is kept: what people wrote of it, where it is in its life, and which sealed bytes it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageRow {
    /// Its identity.
    pub(crate) id: ImageId,
    /// What people wrote.
    pub(crate) record: ImageRecord,
    /// Where it is in its life.
    pub(crate) state: SavedState,
    /// The sealed image, once there is one. Several records may have the same.
    pub(crate) digest: Option<String>,
    /// What its source was when it came: for a registry the digest of the manifest.
    pub(crate) origin: Option<String>,
    /// The last import into it.
    pub(crate) import: Option<ImportJob>,
    /// In which stores it is to be, and how that goes.
    #[serde(default)]
    pub(crate) placement: Placement,
    /// The boot source that made it.
    pub(crate) boot_source: Option<String>,
    /// How many daemons in a row have begun the import that is under way, without stopping in order.
    pub(crate) begun: u32,
    /// How often an import into it was taken up again after a restart of the daemon.
    pub(crate) resumes: u32,
    /// When the record was made.
    pub(crate) created_at: Timestamp,
    /// When it last changed.
    pub(crate) updated_at: Timestamp,
    /// Kept in a column of its own.
    #[serde(skip)]
    pub(crate) revision: u64,
}

/// An import, under way or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportJob {
    /// Its operation.
    pub(crate) operation: OperationId,
    /// Where the data comes from.
    pub(crate) from: ImageImport,
    /// Largest disk that is taken, bytes, if it is less than what any image may have.
    pub(crate) max_disk_bytes: Option<u64>,
}

impl ImageRow {
    /// A record without data.
    pub(crate) fn queued(record: ImageRecord, now: Timestamp) -> Self {
        Self {
            id: ImageId::random(),
            record,
            state: SavedState::queued(now),
            digest: None,
            origin: None,
            import: None,
            placement: Placement::default(),
            boot_source: None,
            begun: 0,
            resumes: 0,
            created_at: now,
            updated_at: now,
            revision: 1,
        }
    }

    /// A record of an image that is in the store.
    pub(crate) fn sealed(record: ImageRecord, digest: String, now: Timestamp) -> Self {
        let mut row = Self::queued(record, now);
        row.state.state = ImageState::Active;
        row.digest = Some(digest);
        row
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.record.name().as_str()
    }

    /// What its events are about: its bytes where it has some, else itself.
    pub(crate) fn subject(&self) -> String {
        self.digest.clone().unwrap_or_else(|| self.id.to_string())
    }

    /// The operation that is under way.
    pub(crate) fn operation(&self) -> Option<OperationId> {
        let job = self
            .import
            .as_ref()
            .filter(|_| self.state.state == ImageState::Importing);
        job.map(|job| job.operation)
    }
}

impl Change<'_> {
    /// Adds a record; a name that is taken is a conflict.
    pub(crate) fn insert_image(&self, row: &ImageRow) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT INTO images (id, name, digest, record, revision) VALUES (?, ?, ?, ?, ?)",
            params![
                row.id.to_string(),
                row.name(),
                row.digest,
                serde_json::to_string(row)?,
                to_row(row.revision)?
            ],
        )?;
        Ok(())
    }

    /// Writes a record, and moves its revision on. A name that is taken is a conflict.
    pub(crate) fn update_image(&self, row: &mut ImageRow) -> Result<(), RegistryError> {
        row.updated_at = self.now;
        self.transaction.execute(
            "UPDATE images SET name = ?, digest = ?, record = ?, revision = revision + 1 WHERE id = ?",
            params![row.name(), row.digest, serde_json::to_string(row)?, row.id.to_string()],
        )?;
        row.revision += 1;
        Ok(())
    }

    /// Removes a record and the aliases that lead to it.
    pub(crate) fn delete_image(&self, id: ImageId) -> Result<(), RegistryError> {
        let id = id.to_string();
        self.transaction
            .execute("DELETE FROM image_aliases WHERE image = ?", [&id])?;
        self.transaction.execute("DELETE FROM images WHERE id = ?", [&id])?;
        Ok(())
    }

    /// A record by id or name.
    pub(crate) fn image(&self, name_or_id: &str) -> Result<Option<ImageRow>, RegistryError> {
        // As with machines, the id wins.
        let query = format!("SELECT {COLUMNS} FROM images WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        self.transaction
            .prepare_cached(&query)?
            .query_row([name_or_id], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All records, oldest first.
    pub(crate) fn images(&self) -> Result<Vec<ImageRow>, RegistryError> {
        self.image_rows(&format!("SELECT {COLUMNS} FROM images ORDER BY number"), &[])
    }

    /// The records of one sealed image, oldest first.
    pub(crate) fn images_of(&self, digest: &str) -> Result<Vec<ImageRow>, RegistryError> {
        let query = format!("SELECT {COLUMNS} FROM images WHERE digest = ? ORDER BY number");
        self.image_rows(&query, &[digest])
    }

    /// The records whose source was so when they came, oldest first.
    pub(crate) fn images_from(&self, origin: &str) -> Result<Vec<ImageRow>, RegistryError> {
        let mut rows = self.images()?;
        rows.retain(|row| row.origin.as_deref() == Some(origin));
        Ok(rows)
    }

    fn image_rows(&self, query: &str, with: &[&str]) -> Result<Vec<ImageRow>, RegistryError> {
        let mut statement = self.transaction.prepare_cached(query)?;
        let mut rows = statement.query(rusqlite::params_from_iter(with))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(row)?);
        }
        Ok(found)
    }

    /// From now on `alias` leads to an image.
    pub(crate) fn lead_alias(&self, alias: &str, image: &str) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT OR REPLACE INTO image_aliases (alias, image) VALUES (?, ?)",
            [alias, image],
        )?;
        Ok(())
    }

    /// From now on `alias` leads nowhere.
    pub(crate) fn unset_alias(&self, alias: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM image_aliases WHERE alias = ?", [alias])?;
        Ok(())
    }

    /// Id of the image that `alias` leads to.
    pub(crate) fn alias(&self, alias: &str) -> Result<Option<String>, RegistryError> {
        Ok(self
            .transaction
            .prepare_cached("SELECT image FROM image_aliases WHERE alias = ?")?
            .query_row([alias], |row| row.get(0))
            .optional()?)
    }

    /// Aliases that lead to an image.
    pub(crate) fn aliases_of(&self, id: ImageId) -> Result<Vec<String>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT alias FROM image_aliases WHERE image = ? ORDER BY alias")?;
        let aliases = statement.query_map([id.to_string()], |row| row.get(0))?;
        Ok(aliases.collect::<Result<_, _>>()?)
    }
}

fn read(row: &Row<'_>) -> Result<ImageRow, RegistryError> {
    let mut image: ImageRow = serde_json::from_str(&row.get::<_, String>(0)?)?;
    image.revision = row.get::<_, i64>(1)?.unsigned_abs();
    Ok(image)
}
