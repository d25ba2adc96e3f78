//! The fixed fields at the start of an image, versions 2 and 3 (specification, "Header").

use super::layout::{CLUSTER_BITS, HOST_END, L1_BYTES_MAX, Layout, REFTABLE_BYTES_MAX, SNAPSHOTS_MAX};

/// First four bytes: `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header, and of what both versions share, bytes.
pub const V2_BYTES: u32 = 72;
/// Length of the shortest version 3 header, bytes.
pub const V3_BYTES: u32 = 104;
/// Length of the header that is written, bytes: with the compression type, padded to a multiple of 8.
pub const WRITTEN_BYTES: u32 = 112;
/// Longest backing file name, bytes.
pub const BACKING_NAME_MAX: u32 = 1023;

/// Bits of `incompatible_features`.
pub mod incompatible {
    /// Refcounts may be wrong (lazy refcounts and no clean end).
    pub const DIRTY: u64 = 1 << 0;
    /// Structures are damaged: repair before writing.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data lives in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type field is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// All that this crate understands.
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Bits of `compatible_features`.
pub mod compatible {
    /// Refcounts are written late, guarded by the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Bits of `autoclear_features`.
pub mod autoclear {
    /// The bitmaps extension is consistent with the data.
    pub const BITMAPS: u64 = 1 << 0;
    /// The external data file is what a guest sees, byte for byte.
    pub const RAW_DATA_FILE: u64 = 1 << 1;
    /// All that this crate maintains.
    pub const KNOWN: u64 = BITMAPS | RAW_DATA_FILE;
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Deflate without a header.
    #[default]
    Zlib,
    /// One zstd frame.
    Zstd,
}

/// Why bytes are no header of an image that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another format, or none.
    #[error("not a qcow2 image: the magic number is missing")]
    NotQcow2,
    /// Less bytes than a header has.
    #[error("the file ends within the qcow2 header")]
    Short,
    /// Version 1 or one of the future.
    #[error("qcow2 version {0} is not supported: convert the image to version 3 with qemu-img amend or convert")]
    Version(u32),
    /// A field contradicts the specification.
    #[error("the qcow2 header is damaged: {field} is {value:#x}")]
    Field {
        /// Its name in the specification.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A table or the image is larger than this program accepts.
    #[error("the qcow2 image asks for more than is supported: {field} is {value}")]
    Limit {
        /// Its name in the specification.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The contents are encrypted.
    #[error("the image is encrypted with {0}, which is not supported: decrypt it with qemu-img convert")]
    Encrypted(&'static str),
    /// Features that must be understood, and are not.
    #[error("the image needs features that are not supported: {}", .0.join(", "))]
    Features(Vec<String>),
}

/// A header's fields. Version 2 has fixed values for what only version 3 tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Where the backing file's name is and how long, bytes; offset 0 for none.
    pub backing_offset: u64,
    /// Length of that name, bytes.
    pub backing_len: u32,
    /// Virtual size, bytes.
    pub size_bytes: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Where it is, bytes.
    pub l1_offset: u64,
    /// Where the refcount table is, bytes.
    pub reftable_offset: u64,
    /// How many clusters it has.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where their table is, bytes.
    pub snapshots_offset: u64,
    /// See [`incompatible`].
    pub incompatible: u64,
    /// See [`compatible`].
    pub compatible: u64,
    /// See [`autoclear`].
    pub autoclear: u64,
    /// log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Length of the header, bytes: extensions start there.
    pub header_len: u32,
    /// Fields of later specifications, from byte 112 on, kept as they are.
    pub unknown: Vec<u8>,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl Header {
    /// Reads the fields from the image's first bytes (a cluster, or what there is of it) and checks each by itself.
    ///
    /// `feature_name` tells what the image's feature name table calls an incompatible bit.
    ///
    /// # Errors
    /// No qcow2, damaged, too large, encrypted, or with features that are not understood.
    pub fn parse(bytes: &[u8], feature_name: impl Fn(u32) -> Option<String>) -> Result<Self, HeaderError> {
        let header = Self::parse_fields(bytes)?;
        header.check_features(feature_name)?;
        header.check()?;
        Ok(header)
    }

    /// Reads the fields, and checks only what is needed to find the extensions.
    ///
    /// # Errors
    /// No qcow2 of version 2 or 3, or shorter than a header.
    pub fn parse_fields(bytes: &[u8]) -> Result<Self, HeaderError> {
        let fields = Fields(bytes);
        if fields.word(0) != Some(MAGIC) {
            return Err(HeaderError::NotQcow2);
        }
        let version = fields.word(4).ok_or(HeaderError::Short)?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        Self::fields(&fields, version).ok_or(HeaderError::Short)?
    }

    fn fields(fields: &Fields<'_>, version: u32) -> Option<Result<Self, HeaderError>> {
        let crypt = fields.word(32)?;
        match crypt {
            0 => {}
            1 => return Some(Err(HeaderError::Encrypted("AES"))),
            2 => return Some(Err(HeaderError::Encrypted("LUKS"))),
            _ => return Some(Err(damaged("crypt_method", crypt.into()))),
        }
        let mut header = Self {
            version,
            backing_offset: fields.long(8)?,
            backing_len: fields.word(16)?,
            cluster_bits: fields.word(20)?,
            size_bytes: fields.long(24)?,
            l1_entries: fields.word(36)?,
            l1_offset: fields.long(40)?,
            reftable_offset: fields.long(48)?,
            reftable_clusters: fields.word(56)?,
            snapshot_count: fields.word(60)?,
            snapshots_offset: fields.long(64)?,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            header_len: V2_BYTES,
            unknown: Vec::new(),
        };
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            return Some(Err(damaged("cluster_bits", header.cluster_bits.into())));
        }
        if version == 2 {
            return Some(Ok(header));
        }
        header.incompatible = fields.long(72)?;
        header.compatible = fields.long(80)?;
        header.autoclear = fields.long(88)?;
        header.refcount_order = fields.word(96)?;
        header.header_len = fields.word(100)?;
        let len = header.header_len;
        if len < V3_BYTES || u64::from(len) > 1 << header.cluster_bits || !len.is_multiple_of(8) {
            return Some(Err(damaged("header_length", len.into())));
        }
        let kind = if len > V3_BYTES { *fields.0.get(104)? } else { 0 };
        header.compression = match kind {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            _ => return Some(Err(HeaderError::Features(vec![format!("compression type {kind}")]))),
        };
        if len > WRITTEN_BYTES {
            header.unknown = fields.0.get(WRITTEN_BYTES as usize..len as usize)?.to_vec();
        }
        Some(Ok(header))
    }

    fn check_features(&self, feature_name: impl Fn(u32) -> Option<String>) -> Result<(), HeaderError> {
        let strange = self.incompatible & !incompatible::KNOWN;
        if strange == 0 {
            return Ok(());
        }
        let bits = (0..64).filter(|bit| strange >> bit & 1 == 1);
        let names = bits.map(|bit| feature_name(bit).unwrap_or_else(|| format!("unknown incompatible feature {bit}")));
        Err(HeaderError::Features(names.collect()))
    }

    /// Checks every field by itself and against the others, without looking at the file.
    fn check(&self) -> Result<(), HeaderError> {
        let layout = self.layout();
        let aligned = |field, offset: u64| {
            let fine = layout.in_cluster(offset) == 0 && offset < HOST_END;
            if fine { Ok(()) } else { Err(damaged(field, offset)) }
        };
        if self.refcount_order > 6 {
            return Err(damaged("refcount_order", self.refcount_order.into()));
        }
        if layout.extended_l2 && self.cluster_bits < 14 {
            return Err(damaged("cluster_bits (with subclusters)", self.cluster_bits.into()));
        }
        let compressed_otherwise = self.compression != Compression::Zlib;
        if compressed_otherwise != (self.incompatible & incompatible::COMPRESSION != 0) {
            return Err(damaged("compression_type", u64::from(compressed_otherwise)));
        }
        aligned("l1_table_offset", self.l1_offset)?;
        aligned("refcount_table_offset", self.reftable_offset)?;
        aligned("snapshots_offset", self.snapshots_offset)?;
        if u64::from(self.l1_entries) * 8 > L1_BYTES_MAX {
            return Err(limit("l1_size", self.l1_entries.into()));
        }
        let needed = layout.l1_entries(self.size_bytes);
        if needed * 8 > L1_BYTES_MAX || self.size_bytes > i64::MAX.unsigned_abs() - 511 {
            return Err(limit("size", self.size_bytes));
        }
        if u64::from(self.l1_entries) < needed || (self.l1_entries > 0 && self.l1_offset == 0) {
            return Err(damaged("l1_size", self.l1_entries.into()));
        }
        if self.reftable_clusters == 0 || self.reftable_offset == 0 {
            return Err(damaged("refcount_table_clusters", self.reftable_clusters.into()));
        }
        if u64::from(self.reftable_clusters) << self.cluster_bits > REFTABLE_BYTES_MAX.max(layout.cluster_bytes()) {
            return Err(limit("refcount_table_clusters", self.reftable_clusters.into()));
        }
        if self.snapshot_count > SNAPSHOTS_MAX {
            return Err(limit("nb_snapshots", self.snapshot_count.into()));
        }
        if self.snapshot_count > 0 && self.snapshots_offset == 0 {
            return Err(damaged("snapshots_offset", 0));
        }
        if self.backing_offset != 0 {
            let end = self.backing_offset.saturating_add(self.backing_len.into());
            if self.backing_len > BACKING_NAME_MAX || end > layout.cluster_bytes() {
                return Err(damaged("backing_file_offset", self.backing_offset));
            }
        }
        Ok(())
    }

    /// What addresses are computed with.
    pub const fn layout(&self) -> Layout {
        Layout {
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.incompatible & incompatible::EXTENDED_L2 != 0,
            version: self.version,
            external_data: self.incompatible & incompatible::DATA_FILE != 0,
        }
    }

    /// The fixed fields, `header_len` bytes: 72 for version 2, at least 104 for version 3.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.header_len as usize);
        let words = |bytes: &mut Vec<u8>, list: &[u32]| list.iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        words(&mut bytes, &[MAGIC, self.version]);
        bytes.extend(self.backing_offset.to_be_bytes());
        words(&mut bytes, &[self.backing_len, self.cluster_bits]);
        bytes.extend(self.size_bytes.to_be_bytes());
        words(&mut bytes, &[0, self.l1_entries]);
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.reftable_offset.to_be_bytes());
        words(&mut bytes, &[self.reftable_clusters, self.snapshot_count]);
        bytes.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            for features in [self.incompatible, self.compatible, self.autoclear] {
                bytes.extend(features.to_be_bytes());
            }
            words(&mut bytes, &[self.refcount_order, self.header_len]);
            if self.header_len > V3_BYTES {
                bytes.extend([u8::from(self.compression == Compression::Zstd), 0, 0, 0, 0, 0, 0, 0]);
                bytes.extend(&self.unknown);
            }
            bytes.resize(self.header_len as usize, 0);
        }
        bytes
    }
}

const fn damaged(field: &'static str, value: u64) -> HeaderError {
    HeaderError::Field { field, value }
}

const fn limit(field: &'static str, value: u64) -> HeaderError {
    HeaderError::Limit { field, value }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
