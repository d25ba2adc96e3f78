//! What an image is, in the words of `qemu-img info --output=json`.

use disk::DiskIo;
use serde::{Deserialize, Serialize};

use super::file::File;
use super::snapshot::SnapshotInfo;
use super::tables::{self, TablesError};
use crate::meta::bitmap::{Bitmap, FLAG_AUTO, FLAG_EXTRA_COMPATIBLE, FLAG_IN_USE};
use crate::meta::head::{Head, HeadError};
use crate::meta::header::{Compression, autoclear, compatible, incompatible};

/// A persistent bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// What one bit stands for, bytes.
    pub granularity: u64,
    /// "in-use": it says nothing. "auto": it tracks every change.
    pub flags: Vec<String>,
}

/// What only images of this format have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// "0.10" for version 2, "1.1" for version 3.
    pub compat: String,
    /// "zlib" or "zstd".
    pub compression_type: String,
    /// Width of a refcount, bits.
    pub refcount_bits: u32,
    /// Refcounts are written late. Version 3.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lazy_refcounts: Option<bool>,
    /// The corrupt bit is set. Version 3.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub corrupt: Option<bool>,
    /// Clusters have subclusters. Version 3.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub extended_l2: Option<bool>,
    /// Name of the external data file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_file: Option<String>,
    /// The external data file is a raw image by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_file_raw: Option<bool>,
    /// Persistent bitmaps.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub bitmaps: Vec<BitmapInfo>,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// "qcow2".
    pub format: String,
    /// Size of the disk, bytes.
    pub virtual_size: u64,
    /// Size of a cluster, bytes.
    pub cluster_size: u64,
    /// The image was not closed cleanly: its refcounts are rebuilt at the next opening.
    pub dirty_flag: bool,
    /// Name of the backing file, as the image has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backing_filename: Option<String>,
    /// Format of the backing file, as the image has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backing_filename_format: Option<String>,
    /// Internal snapshots, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub snapshots: Vec<SnapshotInfo>,
    /// What only images of this format have.
    pub format_specific: Qcow2Info,
}

/// Why it can not be told what an image is.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// The header is not accepted.
    #[error("the image can not be opened")]
    Head(#[from] HeadError),
    /// Snapshots or bitmaps are damaged.
    #[error("the image can not be described")]
    Tables(#[from] TablesError),
}

/// Tells what the image in a file is.
///
/// # Errors
/// The file fails, or header, snapshot table or bitmap directory are damaged or not supported.
pub async fn info(io: &dyn DiskIo) -> Result<ImageInfo, InfoError> {
    let head = Head::read(io).await?;
    let file = File(io);
    let hanging = tables::read_tables(&file, &head).await?;
    let bitmaps = tables::read_bitmaps(&file, &head).await?;
    let header = &head.header;
    let has = |bit| header.incompatible & bit != 0;
    let v3 = header.version >= 3;
    let data_file = match has(incompatible::DATA_FILE) {
        true => head
            .extensions
            .data_file()
            .map_err(TablesError::from)?
            .map(str::to_owned),
        false => None,
    };
    let format = match head.backing_file {
        Some(_) => head.extensions.backing_format().map_err(TablesError::from)?,
        None => None,
    };
    Ok(ImageInfo {
        format: "qcow2".to_owned(),
        virtual_size: header.size_bytes,
        cluster_size: header.layout().cluster_bytes(),
        dirty_flag: has(incompatible::DIRTY),
        backing_filename: head.backing_file.clone(),
        backing_filename_format: format.map(str::to_owned),
        snapshots: hanging.snapshots.iter().map(SnapshotInfo::from).collect(),
        format_specific: Qcow2Info {
            compat: if v3 { "1.1" } else { "0.10" }.to_owned(),
            compression_type: match header.compression {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            }
            .to_owned(),
            refcount_bits: header.layout().refcount_bits(),
            lazy_refcounts: v3.then_some(header.compatible & compatible::LAZY_REFCOUNTS != 0),
            corrupt: v3.then_some(has(incompatible::CORRUPT)),
            extended_l2: v3.then_some(has(incompatible::EXTENDED_L2)),
            data_file,
            data_file_raw: has(incompatible::DATA_FILE).then_some(header.autoclear & autoclear::RAW_DATA_FILE != 0),
            bitmaps: bitmaps.iter().map(BitmapInfo::from).collect(),
        },
    })
}

/// The persistent bitmaps of an image; none while the image says that they do not count.
///
/// # Errors
/// The file fails, or header or bitmap directory are damaged or not supported.
pub async fn list_bitmaps(io: &dyn DiskIo) -> Result<Vec<BitmapInfo>, InfoError> {
    let head = Head::read(io).await?;
    let bitmaps = tables::read_bitmaps(&File(io), &head).await?;
    Ok(bitmaps.iter().map(BitmapInfo::from).collect())
}

impl From<&Bitmap> for BitmapInfo {
    fn from(bitmap: &Bitmap) -> Self {
        let flags = [
            (FLAG_IN_USE, "in-use"),
            (FLAG_AUTO, "auto"),
            (FLAG_EXTRA_COMPATIBLE, "extra-data-compatible"),
        ];
        let set = flags.iter().filter(|(bit, _)| bitmap.flags & bit != 0);
        Self {
            name: String::from_utf8_lossy(&bitmap.name).into_owned(),
            granularity: 1u64.checked_shl(bitmap.granularity_bits.into()).unwrap_or(0),
            flags: set.map(|(_, name)| (*name).to_owned()).collect(),
        }
    }
}
