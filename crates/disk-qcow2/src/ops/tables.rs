//! What hangs on an image's header besides the disk: the tables of snapshots and bitmaps.

use disk::DiskError;

use super::file::{File, long};
use crate::meta::bitmap::{self, Bitmap, BitmapError};
use crate::meta::extension::{BitmapsPointer, ExtensionError};
use crate::meta::head::Head;
use crate::meta::header::autoclear;
use crate::meta::layout::Layout;
use crate::meta::snapshot::{self, Snapshot, SnapshotError};

/// Snapshot entries are read in pieces of this, bytes.
const PIECE_BYTES: u64 = 64 << 10;

/// Why what hangs on an image's header can not be used.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// Its file fails.
    #[error("the image's file can not be read")]
    Io(#[from] DiskError),
    /// Damaged extensions.
    #[error("the image's header extensions are damaged")]
    Extensions(#[from] ExtensionError),
    /// Damaged snapshot table.
    #[error("the image's snapshot table is damaged at entry {index}")]
    Snapshot {
        /// Which entry.
        index: u32,
        /// How.
        #[source]
        source: SnapshotError,
    },
    /// The snapshot table is longer than accepted.
    #[error("the image's snapshot table has more than {} bytes", snapshot::MAX_TABLE_BYTES)]
    SnapshotTable,
    /// Damaged bitmap directory.
    #[error("the image's bitmap directory is damaged")]
    Bitmaps(#[from] BitmapError),
    /// The bitmap directory is where none can be.
    #[error("the image's bitmap directory of {bytes} bytes at {offset:#x} is not accepted")]
    BitmapDirectory {
        /// Where it is said to be, bytes.
        offset: u64,
        /// Length it claims, bytes.
        bytes: u64,
    },
}

/// All that hangs on an image's header except the disk itself.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) snapshots: Vec<Snapshot>,
    /// Length of the snapshot table, bytes.
    pub(crate) snapshots_bytes: u64,
}

/// Where the bitmaps are, if the image has any that count.
pub(crate) fn bitmaps(head: &Head) -> Result<Option<BitmapsPointer>, TablesError> {
    if head.header.autoclear & autoclear::BITMAPS == 0 {
        return Ok(None);
    }
    Ok(head.extensions.bitmaps()?.filter(|pointer| pointer.count > 0))
}

/// Reads the snapshot table.
pub(crate) async fn read_tables(file: &File<'_>, head: &Head) -> Result<Tables, TablesError> {
    let mut snapshots = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut at = 0usize;
    for index in 0..head.header.snapshot_count {
        let needs = |source| TablesError::Snapshot { index, source };
        let mut wanted = snapshot::FIXED_BYTES;
        for _ in 0..2 {
            while bytes.len() < at + wanted {
                if long(bytes.len()) >= snapshot::MAX_TABLE_BYTES {
                    return Err(TablesError::SnapshotTable);
                }
                let offset = head.header.snapshots_offset + long(bytes.len());
                if offset >= file.len() {
                    let there = bytes.len().saturating_sub(at);
                    return Err(needs(SnapshotError::Short { needed: wanted, there }));
                }
                bytes.extend(file.read(offset, PIECE_BYTES).await?);
            }
            let rest = bytes.get(at..).unwrap_or_default();
            wanted = Snapshot::entry_bytes(rest).map_err(needs)?;
        }
        let entry = bytes.get(at..at + wanted).unwrap_or_default();
        snapshots.push(Snapshot::parse(entry).map_err(needs)?);
        at += wanted;
    }
    Ok(Tables {
        snapshots,
        snapshots_bytes: long(at),
    })
}

/// Reads the bytes of the bitmap directory.
pub(crate) async fn bitmap_directory(
    file: &File<'_>,
    layout: Layout,
    pointer: BitmapsPointer,
) -> Result<Vec<u8>, TablesError> {
    let (offset, bytes) = (pointer.directory_offset, pointer.directory_bytes);
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= file.len());
    if bytes > bitmap::MAX_DIRECTORY_BYTES || !inside || offset == 0 || layout.in_cluster(offset) != 0 {
        return Err(TablesError::BitmapDirectory { offset, bytes });
    }
    Ok(file.read(offset, bytes).await?)
}

/// Reads the list of bitmaps; none while the image says that they do not count.
pub(crate) async fn read_bitmaps(file: &File<'_>, head: &Head) -> Result<Vec<Bitmap>, TablesError> {
    let Some(pointer) = bitmaps(head)? else {
        return Ok(Vec::new());
    };
    let directory = bitmap_directory(file, head.header.layout(), pointer).await?;
    Ok(bitmap::parse_directory(&directory, pointer.count)?)
}
