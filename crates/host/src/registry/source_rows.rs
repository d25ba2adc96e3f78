//! Boot sources: what was written of them over the API, and what is remembered of all.

use boot_sources::{BootSource, BootSourceWish, Condition, Origin, SourceState};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Change, RegistryError};

/// What is kept of one boot source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceRow {
    /// Its name.
    pub(crate) name: String,
    /// What was written over the API.
    pub(crate) wish: Option<BootSourceWish>,
    /// The definition as it was when it was last looked at.
    pub(crate) known: Option<Known>,
    /// Whether shipped sources were switched on then.
    pub(crate) system_sources: bool,
    /// What is remembered of polls and imports.
    pub(crate) state: SourceState,
    /// How it was doing.
    pub(crate) conditions: Vec<Condition>,
}

/// A definition in the form in which it can be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    wish: BootSourceWish,
    origin: Origin,
}

impl Known {
    /// Of a definition.
    pub(crate) fn of(source: &BootSource) -> Self {
        Self {
            wish: written(source),
            origin: source.origin,
        }
    }

    /// The definition; nothing where this release would not accept it.
    pub(crate) fn source(&self) -> Option<BootSource> {
        BootSource::check(&self.wish, None, self.origin).ok()
    }
}

/// A definition with every field written out.
pub(crate) fn written(source: &BootSource) -> BootSourceWish {
    BootSourceWish {
        name: source.name.to_string(),
        description: Some(source.description.clone()).filter(|text| !text.is_empty()),
        source: Some(source.source.clone().into()),
        schedule: Some(source.schedule.to_string()),
        jitter_seconds: Some(source.jitter_seconds),
        managed: Some(source.managed.to_string()),
        imports_to_keep: Some(source.imports_to_keep),
        garbage_collect: Some(source.garbage_collect),
        retention: Some(source.retention),
        enabled: Some(source.enabled),
        store: source.store.as_ref().map(ToString::to_string),
        max_size: source.max_size,
    }
}

impl SourceRow {
    /// Of a source nothing is known of yet.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            wish: None,
            known: None,
            system_sources: true,
            state: SourceState::default(),
            conditions: Vec::new(),
        }
    }
}

impl Change<'_> {
    /// All that is kept of boot sources, by name.
    pub(crate) fn boot_sources(&self) -> Result<Vec<SourceRow>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT record FROM boot_sources ORDER BY name")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(serde_json::from_str(&row.get::<_, String>(0)?)?);
        }
        Ok(found)
    }

    /// What is kept of one.
    pub(crate) fn boot_source(&self, name: &str) -> Result<Option<SourceRow>, RegistryError> {
        let text: Option<String> = self
            .transaction
            .prepare_cached("SELECT record FROM boot_sources WHERE name = ?")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        Ok(text.as_deref().map(serde_json::from_str).transpose()?)
    }

    /// Keeps it.
    pub(crate) fn put_boot_source(&self, row: &SourceRow) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT OR REPLACE INTO boot_sources (name, record) VALUES (?, ?)",
            params![row.name, serde_json::to_string(row)?],
        )?;
        Ok(())
    }

    /// Forgets it.
    pub(crate) fn delete_boot_source(&self, name: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM boot_sources WHERE name = ?", [name])?;
        Ok(())
    }
}
