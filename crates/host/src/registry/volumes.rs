//! Volumes.

use api_types::VolumeAttachment;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use spec::VolumeId;

use super::holders::{Holder, Holders};
use super::volume_record::VolumeRecord;
use super::{Change, RegistryError, to_row};

const COLUMNS: &str = "record, revision";

impl Change<'_> {
    /// Adds a volume; a name that is taken is a conflict.
    pub(crate) fn insert_volume(&self, record: &VolumeRecord) -> Result<(), RegistryError> {
        self.transaction.execute(
            "INSERT INTO volumes (id, name, record, revision) VALUES (?, ?, ?, ?)",
            params![
                record.id.to_string(),
                record.name(),
                serde_json::to_string(record)?,
                to_row(record.revision)?
            ],
        )?;
        Ok(())
    }

    /// Writes how a volume is, and moves its revision on. False when there is no such volume.
    pub(crate) fn update_volume(&self, record: &VolumeRecord) -> Result<bool, RegistryError> {
        let changed = self.transaction.execute(
            "UPDATE volumes SET record = ?, revision = revision + 1 WHERE id = ?",
            params![serde_json::to_string(record)?, record.id.to_string()],
        )?;
        Ok(changed > 0)
    }

    /// Removes a volume's record.
    pub(crate) fn delete_volume(&self, id: VolumeId) -> Result<(), RegistryError> {
        self.transaction
            .execute("DELETE FROM volumes WHERE id = ?", [id.to_string()])?;
        Ok(())
    }

    /// A volume by name or id.
    pub(crate) fn volume(&self, name_or_id: &str) -> Result<Option<VolumeRecord>, RegistryError> {
        // As with machines, the id wins.
        let query = format!("SELECT {COLUMNS} FROM volumes WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        self.transaction
            .prepare_cached(&query)?
            .query_row([name_or_id], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All volumes, by name.
    pub(crate) fn volumes(&self) -> Result<Vec<VolumeRecord>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes ORDER BY name"))?;
        let mut rows = statement.query([])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(read(row)?);
        }
        Ok(records)
    }

    /// Those whose record has `part` somewhere in it, by name: few, of which the caller looks at each.
    fn volumes_with(&self, part: &str) -> Result<Vec<VolumeRecord>, RegistryError> {
        let query = format!("SELECT {COLUMNS} FROM volumes WHERE instr(record, ?) > 0 ORDER BY name");
        let mut statement = self.transaction.prepare_cached(&query)?;
        let mut rows = statement.query([part])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(read(row)?);
        }
        Ok(records)
    }

    /// Names of the volumes that need an image.
    pub(crate) fn image_volumes(&self, digest: &str) -> Result<Vec<String>, RegistryError> {
        let records = self.volumes_with(digest)?.into_iter();
        let needs = records.filter(|record| record.needs_image() == Some(digest));
        Ok(needs.map(|record| record.name().to_owned()).collect())
    }

    /// The same of those that need it in one store, as their records name it; of the default one without.
    pub(crate) fn image_volumes_in(&self, digest: &str, store: Option<&str>) -> Result<Vec<String>, RegistryError> {
        let records = self.volumes_with(digest)?.into_iter();
        let needs = records.filter(|record| record.needs_image() == Some(digest));
        let needs = needs.filter(|record| record.image_store.as_deref() == store);
        Ok(needs.map(|record| record.name().to_owned()).collect())
    }

    /// Names of the volumes that are being copied from this one.
    pub(crate) fn volume_copies(&self, id: VolumeId) -> Result<Vec<String>, RegistryError> {
        let records = self.volumes_with(&id.to_string())?.into_iter();
        let copies = records.filter(|record| record.copies() == Some(id));
        Ok(copies.map(|record| record.name().to_owned()).collect())
    }

    /// The machines that have a volume as a disk, by name.
    pub(crate) fn holders(&self, volume: &VolumeRecord) -> Result<Vec<Holder>, RegistryError> {
        let vms = self.vms_naming(volume.name(), &volume.id.to_string())?;
        Ok(Holders::of(&vms).of_volume(volume))
    }

    /// The same, as the API shows it.
    pub(crate) fn attachments(&self, volume: &VolumeRecord) -> Result<Vec<VolumeAttachment>, RegistryError> {
        Ok(self.holders(volume)?.into_iter().map(Holder::into_attachment).collect())
    }

    /// All volumes, by name, and where each is attached. Reads every machine once.
    pub(crate) fn attached_volumes(&self) -> Result<Vec<(VolumeRecord, Vec<VolumeAttachment>)>, RegistryError> {
        let vms = self.vms()?;
        let holders = Holders::of(&vms);
        let attached = self.volumes()?.into_iter().map(|volume| {
            let attached = holders.of_volume(&volume).into_iter();
            let attached = attached.map(Holder::into_attachment).collect();
            (volume, attached)
        });
        Ok(attached.collect())
    }

    /// When this change happens.
    pub(crate) const fn now(&self) -> Timestamp {
        self.now
    }
}

fn read(row: &Row<'_>) -> Result<VolumeRecord, RegistryError> {
    let mut record: VolumeRecord = serde_json::from_str(&row.get::<_, String>(0)?)?;
    record.revision = row.get::<_, i64>(1)?.unsigned_abs();
    Ok(record)
}
