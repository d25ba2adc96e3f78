//! Internal snapshots of an image that nobody uses: list, create, apply, delete.
//!
//! Each change writes what is new to free clusters and switches by the header: a crash leaves the image as it was before or
//! as it is after, with at most lost clusters (see `settle`). One walk over the metadata of the whole image is made before, and
//! another with the new state; the guest's data is not touched.

use disk::DiskIo;
use serde::{Deserialize, Serialize};

use super::change::{Change, ChangeError};
use super::check::Limits;
use super::file::File;
use super::tables::{self, TablesError};
use crate::meta::bitmap::Marking;
use crate::meta::head::{Head, HeadError};
use crate::meta::layout::{L1_BYTES_MAX, SNAPSHOTS_MAX};
use crate::meta::snapshot::Snapshot;

/// What the instruction count of a snapshot says when there is none.
const NO_ICOUNT: u64 = u64::MAX;

/// One snapshot, with the names of `qemu-img info --output=json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its identifier, unique within the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Length of the VM state in it, bytes.
    pub vm_state_size: u64,
    /// When it was made, seconds since 1970.
    pub date_sec: u64,
    /// When it was made, nanoseconds within the second.
    pub date_nsec: u32,
    /// How long the machine had been running, whole seconds.
    pub vm_clock_sec: u64,
    /// How long the machine had been running, nanoseconds beyond those.
    pub vm_clock_nsec: u64,
    /// Instructions counted by then, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
    /// Size of the disk then, bytes, if the image says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
}

impl From<&Snapshot> for SnapshotInfo {
    fn from(snapshot: &Snapshot) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            id: String::from_utf8_lossy(&snapshot.id).into_owned(),
            name: String::from_utf8_lossy(&snapshot.name).into_owned(),
            vm_state_size: snapshot.vm_state_len(),
            date_sec: snapshot.date_sec.into(),
            date_nsec: snapshot.date_nsec,
            vm_clock_sec: snapshot.vm_clock_nsec / SECOND,
            vm_clock_nsec: snapshot.vm_clock_nsec % SECOND,
            icount: snapshot.icount.filter(|&count| count != NO_ICOUNT),
            disk_size: snapshot.disk_bytes,
        }
    }
}

/// Why something could not be done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The image can not be read.
    #[error("the snapshots of the image can not be listed")]
    Head(#[from] HeadError),
    /// The table can not be read.
    #[error("the snapshots of the image can not be listed")]
    Tables(#[from] TablesError),
    /// It could not be done.
    #[error("the snapshots of the image can not be changed")]
    Change(#[from] ChangeError),
    /// There is none of that name.
    #[error("the image has no snapshot {0:?}")]
    Missing(String),
    /// There is one of that name.
    #[error("the image has a snapshot {0:?} already: choose another name, or delete it first")]
    Exists(String),
    /// A name that can not be stored.
    #[error("snapshot name {0:?} can not be stored: give 1 to 1023 bytes without control characters")]
    Name(String),
    /// As many as there can be.
    #[error("the image has {SNAPSHOTS_MAX} snapshots, and there can not be more")]
    TooMany,
    /// The data lives elsewhere.
    #[error("an image with an external data file can not have snapshots: the data would not be in them")]
    ExternalData,
    /// What the snapshot says of itself can not be.
    #[error("snapshot {0:?} is damaged: its disk is larger than its table can map")]
    Damaged(String),
}

/// All snapshots, oldest first.
///
/// # Errors
/// The image can not be read, or its table is damaged.
pub async fn list(io: &dyn DiskIo) -> Result<Vec<SnapshotInfo>, SnapshotError> {
    let head = Head::read(io).await?;
    let hanging = tables::read_tables(&File(io), &head).await?;
    Ok(hanging.snapshots.iter().map(SnapshotInfo::from).collect())
}

/// A moment, for a new snapshot's date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970.
    pub seconds: u32,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// Makes a snapshot of the disk as it is. Gives its identifier.
///
/// # Errors
/// The name is taken or can not be stored, the image can not have one (more), is damaged, or the file fails.
pub async fn create(io: &dyn DiskIo, name: &str, now: Moment, limits: Limits) -> Result<String, SnapshotError> {
    if name.is_empty() || name.len() > 1023 || name.chars().any(char::is_control) {
        return Err(SnapshotError::Name(name.to_owned()));
    }
    let file = File(io);
    let mut change = Change::prepare(&file, limits).await?;
    let snapshots = &change.tables.snapshots;
    if change.head.header.layout().external_data {
        return Err(SnapshotError::ExternalData);
    }
    if snapshots.iter().any(|s| s.name == name.as_bytes()) {
        return Err(SnapshotError::Exists(name.to_owned()));
    }
    if snapshots.len() >= SNAPSHOTS_MAX as usize {
        return Err(SnapshotError::TooMany);
    }
    let numbers = snapshots
        .iter()
        .filter_map(|s| std::str::from_utf8(&s.id).ok()?.parse::<u64>().ok());
    let id = numbers.max().unwrap_or(0).saturating_add(1).to_string();
    let header = change.head.header.clone();
    let l1_offset = change
        .put_l1(header.l1_offset, header.l1_entries, header.l1_entries)
        .await?;
    change.tables.snapshots.push(Snapshot {
        l1_offset,
        l1_entries: header.l1_entries,
        id: id.clone().into_bytes(),
        name: name.as_bytes().to_vec(),
        date_sec: now.seconds,
        date_nsec: now.nanoseconds,
        vm_state_bytes: Some(0),
        disk_bytes: Some(header.size_bytes),
        icount: Some(NO_ICOUNT),
        ..Snapshot::default()
    });
    replace_table(change, header.size_bytes).await?;
    Ok(id)
}

/// Makes the disk what it was when the snapshot was made. What has been written since is lost, unless another snapshot has it.
///
/// # Errors
/// There is no such snapshot, the image is damaged, or the file fails.
pub async fn apply(io: &dyn DiskIo, id_or_name: &str, limits: Limits) -> Result<(), SnapshotError> {
    let file = File(io);
    let mut change = Change::prepare(&file, limits).await?;
    let index = find(&change.tables.snapshots, id_or_name)?;
    let Some(snapshot) = change.tables.snapshots.get(index).cloned() else {
        return Err(SnapshotError::Missing(id_or_name.to_owned()));
    };
    let header = change.head.header.clone();
    let size = snapshot
        .disk_bytes
        .filter(|&bytes| bytes != 0)
        .unwrap_or(header.size_bytes);
    let needed = header.layout().l1_entries(size);
    if needed * 8 > L1_BYTES_MAX || !size.is_multiple_of(512) {
        return Err(SnapshotError::Damaged(id_or_name.to_owned()));
    }
    let entries = snapshot.l1_entries.max(u32::try_from(needed).unwrap_or(u32::MAX));
    let l1_offset = change.put_l1(snapshot.l1_offset, snapshot.l1_entries, entries).await?;
    let marking = match size == header.size_bytes {
        true => Marking::Auto,
        false => Marking::All,
    };
    change.mark_bitmaps(marking).await?;
    change.head.header.l1_offset = l1_offset;
    change.head.header.l1_entries = entries;
    change.head.header.size_bytes = size;
    change.settle().await?;
    Ok(())
}

/// Deletes a snapshot, and gives back what only it refers to.
///
/// # Errors
/// There is no such snapshot, the image is damaged, or the file fails.
pub async fn delete(io: &dyn DiskIo, id_or_name: &str, limits: Limits) -> Result<(), SnapshotError> {
    let file = File(io);
    let mut change = Change::prepare(&file, limits).await?;
    let index = find(&change.tables.snapshots, id_or_name)?;
    change.tables.snapshots.remove(index);
    let size = change.head.header.size_bytes;
    replace_table(change, size).await
}

/// Writes the new snapshot table and settles.
async fn replace_table(mut change: Change<'_>, disk_bytes: u64) -> Result<(), SnapshotError> {
    if change.head.header.version >= 3 {
        for snapshot in &mut change.tables.snapshots {
            snapshot.complete_for_v3(disk_bytes);
        }
    }
    change.put_snapshots().await?;
    change.settle().await?;
    Ok(())
}

/// By identifier first, then by name.
fn find(snapshots: &[Snapshot], id_or_name: &str) -> Result<usize, SnapshotError> {
    let wanted = id_or_name.as_bytes();
    let by_id = snapshots.iter().position(|s| s.id == wanted);
    let found = by_id.or_else(|| snapshots.iter().position(|s| s.name == wanted));
    found.ok_or_else(|| SnapshotError::Missing(id_or_name.to_owned()))
}
