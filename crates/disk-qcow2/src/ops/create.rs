//! Creating images.

use std::ops::Range;

use disk::{DiskError, DiskIo, ZeroMode};
use serde::{Deserialize, Serialize};

use super::file::{CHUNK_BYTES, File, short};
use super::first_cluster::{self, BadName, HeadTooLong};
use super::plan::Plan;
use crate::meta::extension::{self, Extensions};
use crate::meta::head::Head;
use crate::meta::header::{self, Compression, Header, autoclear, compatible, incompatible};
use crate::meta::layout::{CLUSTER_BITS, L1_BYTES_MAX, REFTABLE_BYTES_MAX};

/// Smallest cluster of an image with subclusters, bytes.
const EXTENDED_CLUSTER_MIN: u64 = 16 << 10;
/// The unit of disk sizes, bytes.
const SECTOR_BYTES: u64 = 512;

/// Version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    /// Version 2, QEMU's "0.10".
    V2,
    /// Version 3, QEMU's "1.1".
    #[default]
    V3,
}

/// What is allocated when an image is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Every cluster has its place; the file is sparse.
    Metadata,
    /// And the file system has reserved the space.
    Falloc,
    /// And zeroes have been written to it.
    Full,
}

/// How compressed clusters will be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompressionKind {
    /// Deflate.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

/// The image below a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingName {
    /// Its name as it is to be stored: a path, absolute or relative to the new image.
    pub name: String,
    /// Its format, "raw" or "qcow2".
    pub format: String,
}

/// The external data file of a new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFileName {
    /// Its name as it is to be stored.
    pub name: String,
    /// It is to be a raw image by itself, at all times.
    pub raw: bool,
}

/// A new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Size of the disk, bytes; rounded up to whole sectors of 512.
    pub size_bytes: u64,
    /// Version of the format.
    pub compat: Compat,
    /// Cluster size, bytes: a power of two, 512 to 2 MiB.
    pub cluster_bytes: u64,
    /// Width of a refcount, bits: a power of two, 1 to 64.
    pub refcount_bits: u32,
    /// Refcounts are written late, and rebuilt after a crash.
    pub lazy_refcounts: bool,
    /// Clusters have 32 subclusters, allocated one by one.
    pub extended_l2: bool,
    /// How compressed clusters will be compressed.
    pub compression: CompressionKind,
    /// The image below.
    pub backing: Option<BackingName>,
    /// The file that is to hold the data.
    pub data_file: Option<DataFileName>,
    /// What is allocated at once.
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// What `qemu-img create` makes of no options: version 3, clusters of 64 KiB, 16-bit refcounts.
    pub const fn of_size(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            compat: Compat::V3,
            cluster_bytes: 64 << 10,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: CompressionKind::Zlib,
            backing: None,
            data_file: None,
            preallocation: Preallocation::Off,
        }
    }
}

/// Why an image could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No such clusters.
    #[error("no image has clusters of {0} bytes: give a power of two from 512 to 2097152")]
    ClusterSize(u64),
    /// No such refcounts.
    #[error("no image has refcounts of {0} bits: give a power of two from 1 to 64")]
    RefcountBits(u32),
    /// Version 2 is too old for it.
    #[error("version 2 images have no {0}: use version 3")]
    NeedsV3(&'static str),
    /// Subclusters would be smaller than a sector.
    #[error("an image with subclusters needs clusters of at least {EXTENDED_CLUSTER_MIN} bytes, not {0}")]
    ExtendedCluster(u64),
    /// More than the tables can map.
    #[error("a disk of {size_bytes} bytes is too large for clusters of {cluster_bytes} bytes: use larger clusters")]
    TooLarge {
        /// Size of the disk, bytes.
        size_bytes: u64,
        /// Size of a cluster, bytes.
        cluster_bytes: u64,
    },
    /// The backing file would never show.
    #[error(
        "preallocation hides the backing file unless the image has subclusters: use extended L2 entries or no preallocation"
    )]
    PreallocatedOverlay,
    /// A raw data file can not show a backing file.
    #[error("an image whose data file is raw can not have a backing file")]
    RawOverlay,
    /// The options name a data file, and none is given, or the other way round.
    #[error("an external data file must be both named and given, or neither")]
    DataFile,
    /// A name that can not be stored.
    #[error("the image can not be created")]
    Name(#[from] BadName),
    /// Names that do not fit.
    #[error("the image can not be created")]
    TooLong(#[from] HeadTooLong),
    /// The file fails.
    #[error("the new image can not be written")]
    Io(#[from] DiskError),
}

/// Creates an image in a file, over whatever is there. The header is written last, so that there is no image before it is
/// whole. `data` is the external data file, if the options name one; it is made as long as the disk.
///
/// # Errors
/// The options exclude each other or the file fails.
pub async fn create(io: &dyn DiskIo, data: Option<&dyn DiskIo>, options: &CreateOptions) -> Result<(), CreateError> {
    let mut head = head_of(options)?;
    if options.data_file.is_some() != data.is_some() {
        return Err(CreateError::DataFile);
    }
    let preallocation = match &options.data_file {
        // What is not mapped reads as zeroes, and that must be what the raw file has.
        Some(DataFileName { raw: true, .. }) => options.preallocation.max_metadata(),
        _ => options.preallocation,
    };
    let layout = head.header.layout();
    let plan = Plan::new(layout, head.header.size_bytes, preallocation != Preallocation::Off);
    if plan.reftable_clusters << layout.cluster_bits > REFTABLE_BYTES_MAX.max(layout.cluster_bytes()) {
        return Err(CreateError::TooLarge {
            size_bytes: options.size_bytes,
            cluster_bytes: options.cluster_bytes,
        });
    }
    head.header.reftable_offset = plan.reftable << layout.cluster_bits;
    head.header.reftable_clusters = u32::try_from(plan.reftable_clusters).unwrap_or(u32::MAX);
    head.header.l1_offset = plan.l1 << layout.cluster_bits;
    let first = first_cluster::layout(&mut head)?;

    let file = File(io);
    // A device has something where nothing was written yet.
    let stale_bytes = data.map_or(file.len(), |data| File(data).len());
    if file.len() > 0 {
        // Whatever was here stops being an image first.
        file.write(0, &vec![0; short(SECTOR_BYTES)]).await?;
        file.sync().await?;
    }
    file.grow(plan.end << layout.cluster_bits).await?;
    plan.write(&file, options.backing.is_some()).await?;
    let (space, start) = match data {
        Some(data) => (File(data), 0),
        None => (File(io), plan.data << layout.cluster_bits),
    };
    let len = match data {
        Some(_) => head.header.size_bytes,
        None => plan.data_clusters << layout.cluster_bits,
    };
    fill(&space, start..start + len, stale_bytes, preallocation).await?;
    if data.is_some() {
        space.sync().await?;
    }
    let mut cluster = first;
    cluster.resize(short(layout.cluster_bytes()), 0);
    let (sector, rest) = cluster.split_at_checked(short(SECTOR_BYTES)).unwrap_or((&cluster, &[]));
    file.write(SECTOR_BYTES, rest).await?;
    file.sync().await?;
    file.write(0, sector).await?;
    file.sync().await?;
    Ok(())
}

impl Preallocation {
    const fn max_metadata(self) -> Self {
        match self {
            Self::Off => Self::Metadata,
            other => other,
        }
    }
}

/// Gives the data its space, of which the first `stale_bytes` of the file may hold anything.
async fn fill(
    file: &File<'_>,
    Range { start, end }: Range<u64>,
    stale_bytes: u64,
    preallocation: Preallocation,
) -> Result<(), DiskError> {
    file.grow(end).await?;
    let sector = u64::from(file.0.geometry().logical_sector_bytes);
    let len = (end - start).next_multiple_of(sector);
    match preallocation {
        Preallocation::Off => {}
        Preallocation::Metadata => {
            let stale = stale_bytes.saturating_sub(start).min(len);
            if stale > 0 {
                file.0.write_zeroes(start, stale, ZeroMode::MayUnmap).await?;
            }
        }
        Preallocation::Falloc => file.0.write_zeroes(start, len, ZeroMode::KeepAllocated).await?,
        Preallocation::Full => {
            let zeroes = vec![0; short(CHUNK_BYTES)];
            let mut at = 0;
            while at < len {
                let piece = CHUNK_BYTES.min(len - at);
                let zeroes = zeroes.get(..short(piece)).unwrap_or_default();
                file.write(start + at, zeroes).await?;
                at += piece;
            }
        }
    }
    Ok(())
}

/// The first cluster's contents, as far as the options say.
pub(crate) fn head_of(options: &CreateOptions) -> Result<Head, CreateError> {
    check_options(options)?;
    let (cluster_bytes, size_bytes) = (options.cluster_bytes, options.size_bytes);
    let too_large = CreateError::TooLarge {
        size_bytes,
        cluster_bytes,
    };
    let size = size_bytes.checked_next_multiple_of(SECTOR_BYTES);
    let Some(size) = size.filter(|&size| size <= i64::MAX.unsigned_abs() - SECTOR_BYTES) else {
        return Err(too_large);
    };
    let mut header = header_of(options);
    header.size_bytes = size;
    let entries = header.layout().l1_entries(size);
    if entries * 8 > L1_BYTES_MAX {
        return Err(too_large);
    }
    header.l1_entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let mut extensions = Extensions::default();
    if let Some(backing) = &options.backing {
        extensions.set(extension::BACKING_FORMAT, backing.format.clone().into_bytes());
    }
    if let Some(data_file) = &options.data_file {
        extensions.set(extension::DATA_FILE, data_file.name.clone().into_bytes());
    }
    if header.version == 3 {
        extensions.set(extension::FEATURE_NAMES, extension::feature_name_table());
    }
    Ok(Head {
        header,
        extensions,
        backing_file: options.backing.as_ref().map(|backing| backing.name.clone()),
    })
}

/// The fixed fields, without sizes and places.
fn header_of(options: &CreateOptions) -> Header {
    let bit = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
    let (version, header_len) = match options.compat {
        Compat::V2 => (2, header::V2_BYTES),
        Compat::V3 => (3, header::WRITTEN_BYTES),
    };
    let compression = match options.compression {
        CompressionKind::Zlib => Compression::Zlib,
        CompressionKind::Zstd => Compression::Zstd,
    };
    let raw = options.data_file.as_ref().is_some_and(|data_file| data_file.raw);
    Header {
        version,
        cluster_bits: options.cluster_bytes.trailing_zeros(),
        backing_offset: 0,
        backing_len: 0,
        size_bytes: 0,
        l1_entries: 0,
        l1_offset: 0,
        reftable_offset: 0,
        reftable_clusters: 0,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: bit(options.data_file.is_some(), incompatible::DATA_FILE)
            | bit(compression == Compression::Zstd, incompatible::COMPRESSION)
            | bit(options.extended_l2, incompatible::EXTENDED_L2),
        compatible: bit(options.lazy_refcounts, compatible::LAZY_REFCOUNTS),
        autoclear: bit(raw, autoclear::RAW_DATA_FILE),
        refcount_order: options.refcount_bits.trailing_zeros(),
        compression,
        header_len,
        unknown: Vec::new(),
    }
}

fn check_options(options: &CreateOptions) -> Result<(), CreateError> {
    let cluster = options.cluster_bytes;
    if !cluster.is_power_of_two() || !CLUSTER_BITS.contains(&cluster.trailing_zeros()) {
        return Err(CreateError::ClusterSize(cluster));
    }
    let bits = options.refcount_bits;
    if !bits.is_power_of_two() || bits > 64 {
        return Err(CreateError::RefcountBits(bits));
    }
    if options.compat == Compat::V2 {
        let needs = [
            (bits != 16, "refcounts of other than 16 bits"),
            (options.lazy_refcounts, "lazy refcounts"),
            (options.extended_l2, "subclusters"),
            (options.compression == CompressionKind::Zstd, "zstd compression"),
            (options.data_file.is_some(), "external data file"),
        ];
        if let Some((_, what)) = needs.iter().find(|(wanted, _)| *wanted) {
            return Err(CreateError::NeedsV3(what));
        }
    }
    if options.extended_l2 && cluster < EXTENDED_CLUSTER_MIN {
        return Err(CreateError::ExtendedCluster(cluster));
    }
    if let Some(backing) = &options.backing {
        first_cluster::check_name(&backing.name)?;
        first_cluster::check_name(&backing.format)?;
        if options.preallocation != Preallocation::Off && !options.extended_l2 {
            return Err(CreateError::PreallocatedOverlay);
        }
        if options.data_file.as_ref().is_some_and(|data| data.raw) {
            return Err(CreateError::RawOverlay);
        }
    }
    if let Some(data_file) = &options.data_file {
        first_cluster::check_name(&data_file.name)?;
    }
    Ok(())
}
