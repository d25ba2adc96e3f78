//! Copies of images of slow stores, and those that are to be made.

use jiff::Timestamp;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Change, RegistryError};

/// A copy in the default store that may go when it is not used, or one that is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheRow {
    /// Of the bytes.
    pub(crate) digest: String,
    pub(crate) state: CacheState,
    /// Whether somebody asked for it, so that it is made even after a crash.
    pub(crate) is_wanted: bool,
    /// Whether it was made for somebody whose use is still to come, and is no hit.
    pub(crate) is_fresh: bool,
    /// When it was asked for.
    pub(crate) queued_at: Timestamp,
    /// When something was last made from it, or it was made.
    pub(crate) used_at: Timestamp,
    /// How often it was there when it was needed.
    pub(crate) hits: u64,
    /// Why it could not be made.
    pub(crate) problem: Option<String>,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CacheState {
    /// It is to be made.
    Queued,
    /// It is being made. Written down before it is begun: bytes that a crash leaves are known to be a copy.
    Fetching,
    /// It is there.
    Cached,
}

impl CacheRow {
    /// One that is to be made.
    pub(crate) fn queued(digest: &str, now: Timestamp) -> Self {
        Self {
            digest: digest.to_owned(),
            state: CacheState::Queued,
            is_wanted: true,
            is_fresh: false,
            queued_at: now,
            used_at: now,
            hits: 0,
            problem: None,
        }
    }
}

impl Change<'_> {
    /// All copies, those that were not used for longest first.
    pub(crate) fn cache_rows(&self) -> Result<Vec<CacheRow>, RegistryError> {
        let mut statement = self.transaction.prepare_cached("SELECT record FROM image_cache")?;
        let texts = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut rows = Vec::new();
        for text in texts {
            rows.push(serde_json::from_str::<CacheRow>(&text?)?);
        }
        rows.sort_by(|one, other| (one.used_at, &one.digest).cmp(&(other.used_at, &other.digest)));
        Ok(rows)
    }

    /// The copy of these bytes.
    pub(crate) fn cache_row(&self, digest: &str) -> Result<Option<CacheRow>, RegistryError> {
        Ok(self.cache_rows()?.into_iter().find(|row| row.digest == digest))
    }

    /// Writes what is known of a copy.
    pub(crate) fn put_cache_row(&self, row: &CacheRow) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT OR REPLACE INTO image_cache (digest, record) VALUES (?, ?)",
            params![row.digest, serde_json::to_string(row)?],
        )?;
        Ok(())
    }

    /// Forgets a copy: it is gone, or is there to stay.
    pub(crate) fn drop_cache_row(&self, digest: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM image_cache WHERE digest = ?", [digest])?;
        Ok(())
    }
}
