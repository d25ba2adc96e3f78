//! Requests that are carried out once, by the key their sender gave them.

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Change, RegistryError};

/// Newest keys that are kept; older ones go.
const KEYS_KEPT: i64 = 10_000;

/// An answer that is given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// Status, as a number.
    pub status: u16,
    /// Headers that belong to it.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

/// A key that was seen before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenKey {
    /// What was asked for then: a digest.
    pub(crate) request: String,
    /// What the answer was, once there was one.
    pub(crate) answer: Option<KeptAnswer>,
}

impl Change<'_> {
    /// What a key was used for.
    pub(crate) fn key(&self, key: &str) -> Result<Option<SeenKey>, RegistryError> {
        let row = self
            .transaction
            .prepare_cached("SELECT request, answer FROM idempotency_keys WHERE key = ?")?
            .query_row([key], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?)))
            .optional()?;
        let Some((request, answer)) = row else {
            return Ok(None);
        };
        let answer = answer.as_deref().map(serde_json::from_str).transpose()?;
        Ok(Some(SeenKey { request, answer }))
    }

    /// From now on the key is used.
    pub(crate) fn take_key(&self, key: &str, request: &str) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT INTO idempotency_keys (key, request, at) VALUES (?, ?, ?)",
            params![key, request, self.now.to_string()],
        )?;
        let number = self.transaction.last_insert_rowid();
        self.transaction
            .execute("DELETE FROM idempotency_keys WHERE number <= ?", [number - KEYS_KEPT])?;
        Ok(())
    }

    /// What is answered when the key comes again.
    pub(crate) fn keep_answer(&self, key: &str, answer: &KeptAnswer) -> Result<(), RegistryError> {
        self.transaction.execute(
            "UPDATE idempotency_keys SET answer = ? WHERE key = ?",
            params![serde_json::to_string(answer)?, key],
        )?;
        Ok(())
    }

    /// Nothing was done under the key: it may be used again.
    pub(crate) fn forget_key(&self, key: &str) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM idempotency_keys WHERE key = ?", [key])?;
        Ok(())
    }
}
