//! Changing what an image's header says about it: the backing file, lazy refcounts.

use disk::{DiskError, DiskIo};

use super::create::BackingName;
use super::file::{File, long};
use super::first_cluster::{self, BadName, HeadTooLong};
use crate::meta::extension;
use crate::meta::head::{Head, HeadError};
use crate::meta::header::{autoclear, compatible, incompatible};

/// What a disk writes as a whole, bytes.
const SECTOR_BYTES: usize = 512;

/// Why a header could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum AmendError {
    /// It is not accepted.
    #[error("the image can not be opened for a change of its header")]
    Head(#[from] HeadError),
    /// A name that can not be stored.
    #[error("the image's backing file can not be changed")]
    Name(#[from] BadName),
    /// No room.
    #[error("the image's backing file can not be changed")]
    TooLong(#[from] HeadTooLong),
    /// Version 2 knows no such thing.
    #[error("version 2 images have no lazy refcounts: convert the image to version 3")]
    NeedsV3,
    /// A dirty image needs them.
    #[error("the image was not closed cleanly: repair it before lazy refcounts are turned off")]
    Dirty,
    /// The data file must be raw by itself.
    #[error("an image whose data file is raw can not have a backing file")]
    RawOverlay,
    /// The file fails.
    #[error("the image's header can not be written")]
    Io(#[from] DiskError),
}

/// Names another backing file, or none. Only the name changes: that the disk reads the same is the caller's to see to.
///
/// The new name goes where neither the old name nor an extension is, and the header is switched to it by one write: of one
/// sector, unless extensions further back have to move.
///
/// # Errors
/// The name can not be stored, there is no room for it, or the file fails.
pub async fn set_backing(io: &dyn DiskIo, backing: Option<&BackingName>) -> Result<(), AmendError> {
    let file = File(io);
    let mut head = Head::read(io).await?;
    head.header.autoclear &= autoclear::KNOWN;
    let old = (head.header.backing_offset, u64::from(head.header.backing_len));
    match backing {
        None => head.extensions.remove(extension::BACKING_FORMAT),
        Some(BackingName { name, format }) => {
            first_cluster::check_name(name)?;
            first_cluster::check_name(format)?;
            if head.header.autoclear & autoclear::RAW_DATA_FILE != 0 {
                return Err(AmendError::RawOverlay);
            }
            let format = format.clone().into_bytes();
            head.extensions.set(extension::BACKING_FORMAT, format);
        }
    }
    head.backing_file = backing.map(|backing| backing.name.clone());
    let bytes = first_cluster::layout(&mut head)?;
    let (mut front, name) = split(&head, bytes);
    let place = free_place(&head, long(front.len()), old);
    if let (Some(at), false) = (place, name.is_empty()) {
        file.write(at, &name).await?;
        file.sync().await?;
        first_cluster::place_name(&mut head, at);
        let header = head.header.encode();
        if let Some(start) = front.get_mut(..header.len()) {
            start.copy_from_slice(&header);
        }
    } else {
        // No room beside the old name: both change at once. Small clusters, mostly one sector.
        front.extend(name);
    }
    write_changed(&file, &front).await?;
    Ok(())
}

/// Cuts off the name.
fn split(head: &Head, mut bytes: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let len = head.backing_file.as_ref().map_or(0, String::len);
    let name = bytes.split_off(bytes.len().saturating_sub(len));
    (bytes, name)
}

/// Where the new name can be: behind the extensions, and clear of the old name.
fn free_place(head: &Head, front: u64, (old, old_len): (u64, u64)) -> Option<u64> {
    let len = long(head.backing_file.as_ref().map_or(0, String::len));
    let cluster = head.header.layout().cluster_bytes();
    let clear = |at: u64| at + len <= cluster && (old == 0 || at + len <= old || at >= old + old_len);
    let behind = (old + old_len).next_multiple_of(8).max(front);
    [front, behind].into_iter().find(|&at| clear(at))
}

/// Writes the sectors from the first changed one to the last, and makes them durable.
async fn write_changed(file: &File<'_>, bytes: &[u8]) -> Result<(), DiskError> {
    let there = file.read(0, long(bytes.len())).await?;
    let pairs = bytes.chunks(SECTOR_BYTES).zip(there.chunks(SECTOR_BYTES));
    let changed = (0..).zip(pairs).filter(|(_, (new, old))| new != old);
    let last: Option<usize> = changed.map(|(index, _)| index).max();
    let Some(last) = last else { return Ok(()) };
    let end = ((last + 1) * SECTOR_BYTES).min(bytes.len());
    file.write(0, bytes.get(..end).unwrap_or_default()).await?;
    file.sync().await
}

/// Turns lazy refcounts on or off.
///
/// # Errors
/// The image has version 2 or was not closed cleanly, or the file fails.
pub async fn set_lazy_refcounts(io: &dyn DiskIo, lazy: bool) -> Result<(), AmendError> {
    let mut head = Head::read(io).await?;
    if head.header.version < 3 {
        return Err(AmendError::NeedsV3);
    }
    if !lazy && head.header.incompatible & incompatible::DIRTY != 0 {
        return Err(AmendError::Dirty);
    }
    match lazy {
        true => head.header.compatible |= compatible::LAZY_REFCOUNTS,
        false => head.header.compatible &= !compatible::LAZY_REFCOUNTS,
    }
    write_changed(&File(io), &head.header.encode()).await?;
    Ok(())
}
