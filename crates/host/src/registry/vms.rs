//! Machines.

use api_types::{CloneMethod, RootDisk, Vm, VmStatus};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use spec::{DiskFormat, VmId, VmSpec};

use super::{Change, RegistryError, to_row};

const COLUMNS: &str = "id, spec, image_digest, status, created_at, revision";

impl Change<'_> {
    /// Adds a machine; a name that is taken is a conflict.
    pub(crate) fn insert_vm(&self, vm: &Vm) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT INTO vms (id, name, spec, image_digest, status, created_at, revision) VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![
                vm.id.to_string(),
                vm.spec.name,
                serde_json::to_string(&vm.spec)?,
                vm.image_digest,
                serde_json::to_string(&vm.status)?,
                vm.created_at.to_string(),
                to_row(vm.revision)?
            ],
        )?;
        Ok(())
    }

    /// Writes how a machine is, and moves its revision on. False when there is no such machine.
    pub(crate) fn update_vm_status(&self, id: VmId, status: &VmStatus) -> Result<bool, RegistryError> {
        let changed = self.transaction.execute(
            "UPDATE vms SET status = ?, revision = revision + 1 WHERE id = ?",
            params![serde_json::to_string(status)?, id.to_string()],
        )?;
        Ok(changed > 0)
    }

    /// Writes what a machine is made of, and moves its revision on. The name stays.
    pub(crate) fn update_vm_spec(&self, id: VmId, spec: &VmSpec) -> Result<(), RegistryError> {
        self.transaction.execute(
            "UPDATE vms SET spec = ?, revision = revision + 1 WHERE id = ?",
            params![serde_json::to_string(spec)?, id.to_string()],
        )?;
        Ok(())
    }

    /// Removes a machine's record.
    pub(crate) fn delete_vm(&self, id: VmId) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM vms WHERE id = ?", [id.to_string()])?;
        self.departure_is_over(id)
    }

    /// A machine by name or id.
    pub(crate) fn vm(&self, name_or_id: &str) -> Result<Option<Vm>, RegistryError> {
        // A name may look like an id; the id wins, since it can not be chosen.
        let query = format!("SELECT {COLUMNS} FROM vms WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        self.transaction
            .prepare_cached(&query)?
            .query_row([name_or_id], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All machines, by name.
    pub(crate) fn vms(&self) -> Result<Vec<Vm>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY name"))?;
        let mut rows = statement.query([])?;
        let mut vms = Vec::new();
        while let Some(row) = rows.next()? {
            vms.push(read(row)?);
        }
        Ok(vms)
    }

    /// Those whose specification has either text somewhere in it, by name: few, of which the caller looks at each.
    pub(super) fn vms_naming(&self, one: &str, other: &str) -> Result<Vec<Vm>, RegistryError> {
        let query = format!("SELECT {COLUMNS} FROM vms WHERE instr(spec, ?1) > 0 OR instr(spec, ?2) > 0 ORDER BY name");
        let mut statement = self.transaction.prepare_cached(&query)?;
        let mut rows = statement.query([one, other])?;
        let mut vms = Vec::new();
        while let Some(row) = rows.next()? {
            vms.push(read(row)?);
        }
        Ok(vms)
    }

    /// Names of the machines made from an image whose disks do not stand alone, and those of their snapshots as `snapshots/NAME`.
    pub(crate) fn image_users(&self, digest: &str) -> Result<Vec<String>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT name FROM vms WHERE image_digest = ?1 AND json_extract(status, '$.root_disk.stands_alone') IS NOT 1 UNION SELECT 'snapshots/' || name FROM snapshots WHERE image_digest = ?1 ORDER BY name")?;
        let names = statement.query_map([digest], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// The same of those that need it in one store, as their records name it; of the default one without.
    pub(crate) fn image_users_in(&self, digest: &str, store: Option<&str>) -> Result<Vec<String>, RegistryError> {
        let mut users = self.image_users(digest)?;
        let mut statement = self.transaction.prepare_cached(
            "SELECT name FROM vms WHERE image_digest = ?1 AND json_extract(status, '$.root_disk.store') IS ?2 UNION SELECT 'snapshots/' || name FROM snapshots WHERE image_digest = ?1 AND json_extract(record, '$.store') IS ?2",
        )?;
        let names = statement.query_map(rusqlite::params![digest, store], |row| row.get(0))?;
        let names: Vec<String> = names.collect::<Result<_, _>>()?;
        users.retain(|user| names.contains(user));
        Ok(users)
    }
}

fn read(row: &Row<'_>) -> Result<Vm, RegistryError> {
    let revision: i64 = row.get(5)?;
    let image_digest: Option<String> = row.get(2)?;
    let mut status: VmStatus = serde_json::from_str(&row.get::<_, String>(3)?)?;
    if image_digest.is_some() && status.root_disk.is_none() {
        status.root_disk = Some(root_of_old(&status));
    }
    Ok(Vm {
        id: serde_json::from_value(row.get::<_, String>(0)?.into())?,
        spec: serde_json::from_str(&row.get::<_, String>(1)?)?,
        image_digest,
        status,
        conditions: Vec::new(),
        created_at: timestamp(row, 4)?,
        revision: revision.unsigned_abs(),
    })
}

/// The root disk of a machine whose record does not tell what it is: all of them were raw then.
fn root_of_old(status: &VmStatus) -> RootDisk {
    let method = match status.clone_method.as_deref() {
        Some("reflink") => CloneMethod::Reflink,
        _ => CloneMethod::Copy,
    };
    RootDisk {
        method,
        reason: "the machine was made before others were possible".to_owned(),
        format: DiskFormat::Raw,
        stands_alone: false,
        store: None,
    }
}

/// The time in a column, as RFC 3339.
pub(super) fn timestamp(row: &Row<'_>, column: usize) -> Result<Timestamp, RegistryError> {
    let text: String = row.get(column)?;
    Ok(serde_json::from_value(text.into())?)
}
