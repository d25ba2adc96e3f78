//! Which reference led to which image.

use rusqlite::{OptionalExtension, params};

use super::{Change, RegistryError};

impl Change<'_> {
    /// From now on `reference` means the image with this digest.
    pub(crate) fn point_reference(&self, reference: &str, digest: &str) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT OR REPLACE INTO image_references (reference, digest, pulled_at) VALUES (?, ?, ?)",
            params![reference, digest, self.now.to_string()],
        )?;
        Ok(())
    }

    /// The digest a reference means.
    pub(crate) fn referenced(&self, reference: &str) -> Result<Option<String>, RegistryError> {
        Ok(self
            .transaction
            .prepare_cached("SELECT digest FROM image_references WHERE reference = ?")?
            .query_row([reference], |row| row.get(0))
            .optional()?)
    }

    /// References that mean an image, newest first.
    pub(crate) fn references_to(&self, digest: &str) -> Result<Vec<String>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT reference FROM image_references WHERE digest = ? ORDER BY pulled_at DESC")?;
        let references = statement.query_map([digest], |row| row.get(0))?;
        Ok(references.collect::<Result<_, _>>()?)
    }

    /// Forgets every reference to an image.
    pub(crate) fn forget_references_to(&self, digest: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM image_references WHERE digest = ?", [digest])?;
        Ok(())
    }
}
