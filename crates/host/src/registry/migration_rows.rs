//! Moves of machines: those away from here, those to here, and the ledger of what was decided
//! (`docs/adr/0012-the-source-decides-where-a-machine-is.md`).

use control::MigrationKey;
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spec::{MigrationId, VmId};

use super::{Change, RegistryError};
use crate::moves::{ArrivalRecord, MigrationRecord};

/// Moves that are over and remembered, for each machine.
const KEPT_PER_MACHINE: i64 = 5;
/// Moves that are remembered in all.
const KEPT: i64 = 1000;

/// What both kinds of records have.
pub(crate) trait Moving: Serialize + DeserializeOwned {
    /// Where they are kept.
    const TABLE: &'static str;

    fn id(&self) -> MigrationId;
    fn vm(&self) -> VmId;
    fn is_over(&self) -> bool;
}

impl Moving for MigrationRecord {
    const TABLE: &'static str = "migrations";

    fn id(&self) -> MigrationId {
        self.key.id
    }

    fn vm(&self) -> VmId {
        self.vm
    }

    fn is_over(&self) -> bool {
        self.phase.is_final()
    }
}

impl Moving for ArrivalRecord {
    const TABLE: &'static str = "arrivals";

    fn id(&self) -> MigrationId {
        self.key.id
    }

    fn vm(&self) -> VmId {
        self.vm
    }

    fn is_over(&self) -> bool {
        self.phase.is_final()
    }
}

impl Change<'_> {
    /// Notes a move that begins. A second one of the same machine, or with the same id, is a conflict.
    pub(crate) fn insert_move<R: Moving>(&self, record: &R) -> Result<(), RegistryError> {
        let (table, vm) = (R::TABLE, record.vm().to_string());
        self.transaction.execute(
            &format!("INSERT INTO {table} (id, vm, is_over, record) VALUES (?, ?, ?, ?)"),
            params![
                record.id().to_string(),
                vm,
                record.is_over(),
                serde_json::to_string(record)?
            ],
        )?;
        let forget = format!(
            "DELETE FROM {table} WHERE is_over AND (number <= ?1 OR (vm = ?2 AND number NOT IN
                (SELECT number FROM {table} WHERE vm = ?2 ORDER BY number DESC LIMIT ?3)))"
        );
        let number = self.transaction.last_insert_rowid();
        self.transaction
            .execute(&forget, params![number - KEPT, vm, KEPT_PER_MACHINE])?;
        Ok(())
    }

    /// Writes how a move is.
    pub(crate) fn update_move<R: Moving>(&self, record: &R) -> Result<(), RegistryError> {
        self.transaction.execute(
            &format!("UPDATE {} SET is_over = ?, record = ? WHERE id = ?", R::TABLE),
            params![
                record.is_over(),
                serde_json::to_string(record)?,
                record.id().to_string()
            ],
        )?;
        Ok(())
    }

    /// Forgets a move.
    pub(crate) fn delete_move<R: Moving>(&self, id: MigrationId) -> Result<(), RegistryError> {
        self.transaction
            .execute(&format!("DELETE FROM {} WHERE id = ?", R::TABLE), [id.to_string()])?;
        Ok(())
    }

    /// One move.
    pub(crate) fn find_move<R: Moving>(&self, id: MigrationId) -> Result<Option<R>, RegistryError> {
        self.transaction
            .prepare_cached(&format!("SELECT record FROM {} WHERE id = ?", R::TABLE))?
            .query_row([id.to_string()], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All moves, newest first.
    pub(crate) fn moves<R: Moving>(&self) -> Result<Vec<R>, RegistryError> {
        let query = format!("SELECT record FROM {} ORDER BY number DESC", R::TABLE);
        let mut statement = self.transaction.prepare_cached(&query)?;
        let mut rows = statement.query([])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(read(row)?);
        }
        Ok(records)
    }

    /// The ledger's one operation: writes what is wanted unless something is written for this key, and returns whether what stands
    /// is *departed*. Once the transaction is over, the answer is the same for ever.
    pub(crate) fn decide(&self, key: &MigrationKey, vm: Option<VmId>, departed: bool) -> Result<bool, RegistryError> {
        if let Some(stands) = self.decision(key)? {
            return Ok(stands);
        }
        self.transaction.execute(
            "INSERT INTO ledger (id, token, vm, departed, at) VALUES (?, ?, ?, ?, ?)",
            params![
                key.id.to_string(),
                key.token.to_string(),
                vm.map(|vm| vm.to_string()),
                departed,
                self.now.to_string()
            ],
        )?;
        Ok(departed)
    }

    /// What stands in the ledger, if anything does.
    pub(crate) fn decision(&self, key: &MigrationKey) -> Result<Option<bool>, RegistryError> {
        let query = "SELECT departed FROM ledger WHERE id = ? AND token = ?";
        let found = self
            .transaction
            .prepare_cached(query)?
            .query_row(params![key.id.to_string(), key.token.to_string()], |row| row.get(0))
            .optional()?;
        Ok(found)
    }

    /// Whether the machine that is recorded under this id has departed: then it must never run here again.
    pub(crate) fn has_departed(&self, vm: VmId) -> Result<bool, RegistryError> {
        let query = "SELECT EXISTS (SELECT 1 FROM ledger WHERE vm = ? AND departed)";
        let found = self
            .transaction
            .prepare_cached(query)?
            .query_row([vm.to_string()], |row| row.get(0))?;
        Ok(found)
    }

    /// The record of a machine is gone. The decisions stay; but the machine may come back, under a record of its own.
    pub(super) fn departure_is_over(&self, vm: VmId) -> Result<(), RegistryError> {
        self.transaction
            .execute("UPDATE ledger SET vm = NULL WHERE vm = ?", [vm.to_string()])?;
        Ok(())
    }
}

fn read<R: Moving>(row: &Row<'_>) -> Result<R, RegistryError> {
    Ok(serde_json::from_str(&row.get::<_, String>(0)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn the_first_decision_stands_and_a_machine_that_came_back_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("karat.db");
        let vm = VmId::random();
        let key = |token| MigrationKey {
            id: MigrationId::random(),
            token,
        };
        let (gone, kept) = (key(u64::MAX), key(1));
        let registry = Registry::open(&path).unwrap();
        let decide = |registry: &Registry, key, departed| {
            registry
                .change_now(|change| change.decide(&key, Some(vm), departed))
                .unwrap()
        };
        assert!(decide(&registry, gone, true));
        assert!(!decide(&registry, kept, false));
        drop(registry);
        let registry = Registry::open(&path).unwrap();
        assert!(decide(&registry, gone, false));
        assert!(!decide(&registry, kept, true));
        // Another token is another attempt.
        let forged = MigrationKey { token: 2, ..gone };
        assert!(!decide(&registry, forged, false));
        let departed = |registry: &Registry| registry.change_now(|change| change.has_departed(vm)).unwrap();
        assert!(departed(&registry));
        registry.change_now(|change| change.delete_vm(vm)).unwrap();
        assert!(!departed(&registry));
        assert!(decide(&registry, gone, false));
    }
}
