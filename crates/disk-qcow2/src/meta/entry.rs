//! Entries of L1 and L2 tables (specification, "Cluster mapping").

use super::layout::{HOST_END, Layout};

/// Bit 63: the cluster has exactly one reference and may be written in place.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry in version 3: the cluster reads as zeroes.
pub const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset, bytes.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits that are reserved in an L1 entry.
const L1_RESERVED: u64 = !(COPIED | OFFSET_MASK);
/// Bits that are reserved in a standard L2 entry.
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET_MASK | ZERO);

/// Why an entry is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Reserved bits are set.
    #[error("table entry {0:#x} has reserved bits set")]
    Reserved(u64),
    /// The offset is not a cluster's.
    #[error("table entry {0:#x} does not point at the start of a cluster")]
    Misaligned(u64),
    /// A subcluster is said to be data and zeroes at once, or has no place for its data.
    #[error("subclusters {1:#x} of table entry {0:#x} contradict themselves")]
    Subclusters(u64, u64),
    /// The compressed data ends where no offset reaches.
    #[error("compressed cluster {0:#x} lies beyond the end of any file")]
    Beyond(u64),
}

/// An L1 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Entry {
    /// Where the L2 table is, bytes; 0 for none.
    pub offset: u64,
    /// It may be changed in place.
    pub copied: bool,
}

impl L1Entry {
    /// From its word.
    ///
    /// # Errors
    /// Reserved bits, or no cluster's start.
    pub const fn decode(word: u64, layout: Layout) -> Result<Self, EntryError> {
        if word & L1_RESERVED != 0 {
            return Err(EntryError::Reserved(word));
        }
        let offset = word & OFFSET_MASK;
        if layout.in_cluster(offset) != 0 {
            return Err(EntryError::Misaligned(word));
        }
        Ok(Self {
            offset,
            copied: word & COPIED != 0,
        })
    }

    /// To its word.
    pub const fn encode(self) -> u64 {
        self.offset | if self.copied { COPIED } else { 0 }
    }
}

/// Where a compressed cluster's data is: unaligned, in sectors it may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed {
    /// First byte.
    pub offset: u64,
    /// Bytes up to the end of the last sector; the data may end before.
    pub len: u64,
}

/// What an L2 entry's cluster consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// No cluster of the file.
    Nowhere,
    /// A cluster of the file.
    At {
        /// Its offset, bytes.
        host: u64,
        /// It may be written in place.
        copied: bool,
    },
    /// Compressed data.
    Compressed(Compressed),
}

/// An L2 entry, decoded. Images without subclusters have one unit per cluster, so that both kinds are treated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Entry {
    /// Where the cluster is.
    pub place: Place,
    /// Units whose data is in the cluster: bit n is unit n.
    pub allocated: u32,
    /// Units that read as zeroes. Never a bit in common with `allocated`.
    pub zero: u32,
}

impl L2Entry {
    /// Nothing there: the backing shows.
    pub const NOTHING: Self = Self {
        place: Place::Nowhere,
        allocated: 0,
        zero: 0,
    };

    /// Bits of all units of this layout.
    pub const fn all(layout: Layout) -> u32 {
        if layout.extended_l2 { u32::MAX } else { 1 }
    }

    /// From its word, and its bitmap (0 when entries have none).
    ///
    /// # Errors
    /// Reserved bits, an offset that is no cluster's, subclusters that contradict themselves.
    pub fn decode(word: u64, bitmap: u64, layout: Layout) -> Result<Self, EntryError> {
        if word & COMPRESSED != 0 {
            return Self::decode_compressed(word, bitmap, layout);
        }
        let zero_flag = word & ZERO != 0;
        if word & L2_RESERVED != 0 || (zero_flag && (layout.extended_l2 || layout.version < 3)) {
            return Err(EntryError::Reserved(word));
        }
        let host = word & OFFSET_MASK;
        if layout.in_cluster(host) != 0 {
            return Err(EntryError::Misaligned(word));
        }
        let copied = word & COPIED != 0;
        // In an external data file offset 0 is a cluster like others, told by bit 63.
        let present = host != 0 || (layout.external_data && copied);
        let place = if present {
            Place::At { host, copied }
        } else {
            Place::Nowhere
        };
        let (allocated, zero) = if layout.extended_l2 {
            (low(bitmap), low(bitmap >> 32))
        } else {
            (u32::from(present && !zero_flag), u32::from(zero_flag))
        };
        if allocated & zero != 0 || (allocated != 0 && !present) {
            return Err(EntryError::Subclusters(word, bitmap));
        }
        Ok(Self { place, allocated, zero })
    }

    /// Host offset of the cluster, and whether it may be written in place, of an entry without subclusters that maps data: what
    /// most entries are, told by one look. `None` says nothing: [`L2Entry::decode`] does.
    #[inline]
    pub const fn plain(word: u64, layout: Layout) -> Option<(u64, bool)> {
        let host = word & OFFSET_MASK;
        let flags = word & !(OFFSET_MASK | COPIED);
        if flags != 0 || host == 0 || host >= HOST_END || layout.in_cluster(host) != 0 || layout.extended_l2 {
            return None;
        }
        Some((host, word & COPIED != 0))
    }

    fn decode_compressed(word: u64, bitmap: u64, layout: Layout) -> Result<Self, EntryError> {
        if word & COPIED != 0 {
            return Err(EntryError::Reserved(word));
        }
        if bitmap != 0 {
            return Err(EntryError::Subclusters(word, bitmap));
        }
        let shift = 62 - (layout.cluster_bits - 8);
        let offset = word & ((1 << shift) - 1);
        let sectors = (word & !COMPRESSED) >> shift;
        let len = (sectors + 1) * 512 - offset % 512;
        if offset >= HOST_END || offset + len > HOST_END {
            return Err(EntryError::Beyond(word));
        }
        Ok(Self {
            place: Place::Compressed(Compressed { offset, len }),
            allocated: Self::all(layout),
            zero: 0,
        })
    }

    /// To its word and bitmap (0 for entries without one).
    pub fn encode(self, layout: Layout) -> (u64, u64) {
        let word = match self.place {
            Place::Nowhere => 0,
            Place::At { host, copied } => host | if copied { COPIED } else { 0 },
            Place::Compressed(data) => {
                let shift = 62 - (layout.cluster_bits - 8);
                let sectors = (data.offset % 512 + data.len).div_ceil(512).saturating_sub(1);
                return (COMPRESSED | sectors << shift | data.offset, 0);
            }
        };
        if layout.extended_l2 {
            (word, u64::from(self.zero) << 32 | u64::from(self.allocated))
        } else {
            (word | u64::from(self.zero & 1), 0)
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
const fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layouts() -> impl Strategy<Value = Layout> {
        (9u32..=21, any::<bool>(), 2u32..=3, any::<bool>()).prop_map(
            |(cluster_bits, extended, version, external_data)| Layout {
                cluster_bits,
                refcount_order: 4,
                extended_l2: extended && version == 3 && cluster_bits >= 14,
                version,
                external_data,
            },
        )
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_itself(word: u64, bitmap: u64, layout in layouts()) {
            // Half of all random words would be compressed, nearly all others reserved: mask some.
            for word in [word, word & (COPIED | OFFSET_MASK | ZERO), word & (COPIED | ZERO), word & COPIED
                | layout.cluster_floor(word & OFFSET_MASK)] {
                let bitmap = if layout.extended_l2 { bitmap } else { 0 };
                for bitmap in [bitmap, bitmap & !(bitmap >> 32), 0] {
                    if let Ok(entry) = L2Entry::decode(word, bitmap, layout) {
                        let again = entry.encode(layout);
                        if entry.place == Place::Nowhere {
                            prop_assert_eq!(again, (word & !COPIED, bitmap));
                        } else {
                            prop_assert_eq!(again, (word, bitmap));
                        }
                        prop_assert_eq!(entry.allocated & entry.zero, 0);
                    }
                }
                if let Ok(entry) = L1Entry::decode(word, layout) {
                    prop_assert_eq!(entry.encode(), word);
                }
            }
        }
    }

    #[test]
    fn compressed_clusters_end_with_their_last_sector() {
        let layout = Layout {
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            version: 3,
            external_data: false,
        };
        let word = COMPRESSED | 2 << 54 | 0x5_0100;
        let entry = L2Entry::decode(word, 0, layout).unwrap();
        let data = Compressed {
            offset: 0x5_0100,
            len: 3 * 512 - 0x100,
        };
        assert_eq!(entry.place, Place::Compressed(data));
        assert_eq!(entry.encode(layout), (word, 0));
    }
}
