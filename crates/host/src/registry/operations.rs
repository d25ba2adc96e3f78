//! Operations.

use api_types::{EventReason, OperationKind, OperationPhase, Progress};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use spec::OperationId;

use super::events::About;
use super::{Change, RegistryError};
use crate::failure::Failure;

/// Newest operations that are kept; older ones go when they are over.
const OPERATIONS_KEPT: i64 = 1000;
const COLUMNS: &str = "id, kind, subject, phase, result, failure, created_at, updated_at";

/// An operation as it is kept. Progress lives in memory only and is added by whoever reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// What is being done.
    pub kind: OperationKind,
    /// To what.
    pub subject: String,
    /// Where it is.
    pub phase: OperationPhase,
    /// How far it is, while it runs and that is known.
    pub progress: Option<Progress>,
    /// What came out.
    pub result: Option<String>,
    /// What went wrong.
    pub failure: Option<Failure>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed phase.
    pub updated_at: Timestamp,
}

impl Change<'_> {
    /// Notes an operation that begins now.
    pub(crate) fn begin_operation(
        &self,
        id: OperationId,
        kind: OperationKind,
        subject: &str,
    ) -> Result<OperationRecord, RegistryError> {
        let record = OperationRecord {
            id,
            kind,
            subject: subject.to_owned(),
            phase: OperationPhase::Running,
            progress: None,
            result: None,
            failure: None,
            created_at: self.now,
            updated_at: self.now,
        };
        let now = self.now.to_string();
        self.transaction.execute(
            "INSERT INTO operations (id, kind, subject, phase, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
            params![
                id.to_string(),
                serde_json::to_string(&kind)?,
                subject,
                serde_json::to_string(&record.phase)?,
                now,
                now
            ],
        )?;
        let number = self.transaction.last_insert_rowid();
        self.transaction.execute(
            "DELETE FROM operations WHERE number <= ? AND phase IN ('\"Succeeded\"', '\"Failed\"', '\"Cancelled\"')",
            [number - OPERATIONS_KEPT],
        )?;
        self.event(
            &About::Operation(id, subject),
            EventReason::OperationChanged,
            &format!("{} began", describe(kind)),
        )?;
        Ok(record)
    }

    /// Notes how an operation ended; one that is over stays as it is.
    pub(crate) fn end_operation(
        &self,
        id: OperationId,
        phase: OperationPhase,
        outcome: Result<Option<&str>, &Failure>,
    ) -> Result<(), RegistryError> {
        let Some(record) = self.operation(id)?.filter(|record| !record.phase.is_final()) else {
            return Ok(());
        };
        let failure = outcome.err().map(serde_json::to_string).transpose()?;
        self.transaction.execute(
            "UPDATE operations SET phase = ?, result = ?, failure = ?, updated_at = ? WHERE id = ?",
            params![
                serde_json::to_string(&phase)?,
                outcome.ok().flatten(),
                failure,
                self.now.to_string(),
                id.to_string()
            ],
        )?;
        let what = describe(record.kind);
        let message = match (phase, outcome) {
            (OperationPhase::Cancelled, _) => format!("{what} was cancelled"),
            (_, Err(failure)) => format!("{what} failed: {failure}"),
            (_, Ok(_)) => format!("{what} succeeded"),
        };
        self.event(
            &About::Operation(id, &record.subject),
            EventReason::OperationChanged,
            &message,
        )
    }

    /// Counts another daemon that goes on with an operation; how many these are by now, the first included.
    pub(crate) fn operation_begun_again(&self, id: OperationId) -> Result<u32, RegistryError> {
        let count = "UPDATE operations SET begun = begun + 1 WHERE id = ? RETURNING begun";
        let begun: Option<u32> = self
            .transaction
            .query_row(count, [id.to_string()], |row| row.get(0))
            .optional()?;
        Ok(begun.unwrap_or(0))
    }

    /// Counts begin anew.
    pub(crate) fn no_operation_was_begun(&self) -> Result<(), RegistryError> {
        self.transaction
            .execute("UPDATE operations SET begun = 0 WHERE begun > 0", [])?;
        Ok(())
    }

    /// One operation.
    pub(crate) fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>, RegistryError> {
        self.transaction
            .prepare_cached(&format!("SELECT {COLUMNS} FROM operations WHERE id = ?"))?
            .query_row([id.to_string()], |row| Ok(read(row)))
            .optional()?
            .transpose()
    }

    /// All operations that are remembered, newest first.
    pub(crate) fn operations(&self) -> Result<Vec<OperationRecord>, RegistryError> {
        let mut statement = self
            .transaction
            .prepare_cached(&format!("SELECT {COLUMNS} FROM operations ORDER BY number DESC"))?;
        let mut rows = statement.query([])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(read(row)?);
        }
        Ok(records)
    }
}

fn read(row: &Row<'_>) -> Result<OperationRecord, RegistryError> {
    let failure: Option<String> = row.get(5)?;
    Ok(OperationRecord {
        id: serde_json::from_value(row.get::<_, String>(0)?.into())?,
        kind: serde_json::from_str(&row.get::<_, String>(1)?)?,
        subject: row.get(2)?,
        phase: serde_json::from_str(&row.get::<_, String>(3)?)?,
        progress: None,
        result: row.get(4)?,
        failure: failure.as_deref().map(serde_json::from_str).transpose()?,
        created_at: super::vms::timestamp(row, 6)?,
        updated_at: super::vms::timestamp(row, 7)?,
    })
}

const fn describe(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::ImagePull => "pulling the image",
        OperationKind::ImageImport => "importing the image",
        OperationKind::ImageCopy => "copying the image",
        OperationKind::ImageVerify => "verifying the image",
        OperationKind::ImagePush => "publishing the image",
        OperationKind::BootSourceSync => "synchronising the boot source",
        OperationKind::VmStart => "starting the machine",
        OperationKind::VmStop => "stopping the machine",
        OperationKind::VmFlatten => "making the root disk stand alone",
        OperationKind::VolumeCreate => "creating the volume",
        OperationKind::VolumeUpload => "taking over the upload",
        OperationKind::VolumeResize => "resizing the volume",
        OperationKind::VolumeCheck => "checking the volume",
        OperationKind::VolumeSnapshot => "taking a snapshot of the volume",
        OperationKind::VolumeStream => "streaming the volume",
        OperationKind::VolumeMirror => "copying the volume under its machine",
        OperationKind::VolumeRebase => "making the volume stand alone",
        OperationKind::VolumeCommit => "committing the newest file of the volume",
        OperationKind::SnapshotCreate => "taking the snapshot",
    }
}
