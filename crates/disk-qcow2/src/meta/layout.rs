//! The constants of one image that every address computation needs.

/// Smallest and largest cluster, as powers of two: 512 bytes and 2 MiB (specification, header field `cluster_bits`; QEMU's limit).
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Largest L1 table, bytes (QEMU's `QCOW_MAX_L1_SIZE`).
pub const L1_BYTES_MAX: u64 = 32 << 20;

/// Largest refcount table, bytes (QEMU's `QCOW_MAX_REFTABLE_SIZE`).
pub const REFTABLE_BYTES_MAX: u64 = 8 << 20;

/// Most internal snapshots (QEMU's `QCOW_MAX_SNAPSHOTS`).
pub const SNAPSHOTS_MAX: u32 = 65536;

/// First host offset that no entry can hold, bytes: offsets have bits 9 to 55.
pub const HOST_END: u64 = 1 << 56;

/// Subclusters of a cluster in an image with extended L2 entries (specification, "Extended L2 Entries").
pub const SUBCLUSTERS: u32 = 32;

/// Sizes and widths of one image, all constant over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// log2 of a refcount's width in bits.
    pub refcount_order: u32,
    /// L2 entries have 16 bytes and subclusters.
    pub extended_l2: bool,
    /// Format version: 2 or 3.
    pub version: u32,
    /// Guest data lives in another file.
    pub external_data: bool,
}

impl Layout {
    /// Bytes of a cluster.
    pub const fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry: 8, or 16 when extended.
    pub const fn l2_entry_bytes(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// log2 of the number of entries in an L2 table.
    pub const fn l2_bits(self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 4 } else { 3 }
    }

    /// Entries in an L2 table.
    pub const fn l2_entries(self) -> u64 {
        1 << self.l2_bits()
    }

    /// Guest bytes that one L2 table maps.
    pub const fn l2_span_bytes(self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits())
    }

    /// Bytes of the unit that is mapped on its own: a subcluster, or a cluster where there are none.
    pub const fn unit_bytes(self) -> u64 {
        if self.extended_l2 {
            self.cluster_bytes() / SUBCLUSTERS as u64
        } else {
            self.cluster_bytes()
        }
    }

    /// Number of the L1 entry for a guest offset in bytes.
    pub const fn l1_index(self, guest: u64) -> u64 {
        guest >> (self.cluster_bits + self.l2_bits())
    }

    /// Number of the entry in its L2 table for a guest offset in bytes.
    pub const fn l2_index(self, guest: u64) -> u64 {
        (guest >> self.cluster_bits) & (self.l2_entries() - 1)
    }

    /// Offset inside of its cluster, bytes.
    pub const fn in_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster_bytes() - 1)
    }

    /// The offset rounded down to its cluster, bytes.
    pub const fn cluster_floor(self, offset: u64) -> u64 {
        offset & !(self.cluster_bytes() - 1)
    }

    /// Clusters that `bytes` bytes from a cluster's start on touch.
    pub const fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes())
    }

    /// L1 entries for a virtual disk of this size in bytes.
    pub const fn l1_entries(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.l2_span_bytes())
    }

    /// Width of a refcount, bits: 1 to 64.
    pub const fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// Largest count a refcount can hold.
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in one refcount block.
    pub const fn refblock_entries(self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// Host bytes that one refcount block counts.
    pub const fn refblock_span_bytes(self) -> u64 {
        self.refblock_entries() << self.cluster_bits
    }

    /// Reads and writes of metadata have this size in bytes: a cluster, but at most 4 KiB, so that a small change is a small
    /// write and a large image costs little memory.
    pub const fn slice_bytes(self) -> u64 {
        if self.cluster_bits < 12 {
            self.cluster_bytes()
        } else {
            4096
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_apart_as_the_specification_says() {
        let plain = Layout {
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            version: 3,
            external_data: false,
        };
        assert_eq!(plain.l2_span_bytes(), 512 << 20);
        assert_eq!((plain.l1_index(1 << 30), plain.l2_index((1 << 30) + 65536)), (2, 1));
        assert_eq!((plain.refblock_entries(), plain.refcount_max()), (32768, 65535));
        let extended = Layout {
            extended_l2: true,
            ..plain
        };
        assert_eq!((extended.l2_span_bytes(), extended.unit_bytes()), (256 << 20, 2048));
        let odd = Layout {
            refcount_order: 6,
            cluster_bits: 9,
            ..plain
        };
        assert_eq!((odd.refcount_max(), odd.refblock_entries()), (u64::MAX, 64));
        assert_eq!(
            Layout {
                refcount_order: 0,
                ..plain
            }
            .refcount_max(),
            1
        );
    }
}
