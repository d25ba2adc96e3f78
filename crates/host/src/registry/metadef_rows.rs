//! Metadata definitions that were written over the API.

use rusqlite::params;

use super::{Change, RegistryError};

impl Change<'_> {
    /// All, by name, as they were written.
    pub(crate) fn metadef_texts(&self) -> Result<Vec<String>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT record FROM metadefs ORDER BY name")?;
        let texts = statement.query_map([], |row| row.get(0))?;
        Ok(texts.collect::<Result<_, _>>()?)
    }

    /// Keeps one.
    pub(crate) fn put_metadef_text(&self, name: &str, text: &str) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT OR REPLACE INTO metadefs (name, record) VALUES (?, ?)",
            params![name, text],
        )?;
        Ok(())
    }

    /// Forgets one.
    pub(crate) fn delete_metadef(&self, name: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM metadefs WHERE name = ?", [name])?;
        Ok(())
    }
}
