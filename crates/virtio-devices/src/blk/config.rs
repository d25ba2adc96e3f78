//! Features and configuration space of a block device (virtio 1.2 §5.2.3, §5.2.4).

use disk::{Access, Discard, Geometry};

use crate::config_space;

/// Bytes of a sector in requests and in configuration space, whatever the disk's own are.
pub(super) const SECTOR_SIZE: u64 = 512;
/// Bytes of configuration space.
const SIZE: usize = 60;
/// Offset of `writeback`.
pub(super) const WRITEBACK: u64 = 32;
/// Most data buffers of a request, when the queue is long enough: what Linux takes for a whole number of pages of descriptors.
const SEGMENTS_MAX: u32 = 254;
/// Most ranges of one discard or write-zeroes request. Picked: one 512-byte buffer of them.
pub(super) const RANGES_MAX: u32 = 32;
/// Longest range of a discard or write-zeroes, sectors: 1 GiB, so that none takes the store for ever.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 21;

pub(super) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// What a block device is, beside its disk.
#[derive(Debug, Clone)]
pub struct BlkOptions {
    /// Unique in the machine, as `disk0`.
    pub name: String,
    /// What the guest finds under `/dev/disk/by-id`; at most 20 bytes of it are told.
    pub serial: String,
    /// Queues, each with a thread of its own; 1–64, else the nearest.
    pub queues: u16,
    /// Entries of each queue; a power of two, 4–1024, else the nearest.
    pub queue_size: u16,
}

impl BlkOptions {
    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        let size = self.queue_size.clamp(4, 1024);
        // Rounds down: 1024 is a power of two itself.
        let size = 1 << size.ilog2();
        vec![size; usize::from(self.queues.clamp(1, 64))]
    }
}

/// What the device offers.
pub(super) fn features(geometry: &Geometry, queues: usize) -> u64 {
    let when = |condition: bool, bits: u64| if condition { bits } else { 0 };
    let writable = geometry.access == Access::ReadWrite;
    let discards = writable && matches!(geometry.discard, Discard::Supported { .. });
    feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::FLUSH
        | when(!writable, feature::RO)
        | when(writable, feature::CONFIG_WCE | feature::WRITE_ZEROES)
        | when(discards, feature::DISCARD)
        | when(queues > 1, feature::MQ)
}

/// Configuration space as it is now.
pub(super) fn space(geometry: &Geometry, queue_sizes: &[u16], writeback: bool) -> [u8; SIZE] {
    let queue_size = u32::from(queue_sizes.first().copied().unwrap_or_default());
    let segments = queue_size.saturating_sub(2).clamp(1, SEGMENTS_MAX);
    let logical = geometry.logical_sector_bytes.max(1);
    let exponent = (geometry.physical_sector_bytes / logical).checked_ilog2().unwrap_or(0);
    let granularity = match geometry.discard {
        Discard::Supported { granularity_bytes } => granularity_bytes,
        Discard::Unsupported => logical,
    };
    let sectors = |bytes: u32| u32::try_from(u64::from(bytes) / SECTOR_SIZE).unwrap_or(1).max(1);
    let queues = u16::try_from(queue_sizes.len()).unwrap_or(u16::MAX);
    config_space::lay_out(&[
        (0, &(geometry.size_bytes / SECTOR_SIZE).to_le_bytes()),
        (12, &segments.to_le_bytes()),
        (20, &logical.to_le_bytes()),
        (24, &[u8::try_from(exponent).unwrap_or(0)]),
        (26, &1_u16.to_le_bytes()),
        (32, &[u8::from(writeback)]),
        (34, &queues.to_le_bytes()),
        (36, &RANGE_SECTORS_MAX.to_le_bytes()),
        (40, &RANGES_MAX.to_le_bytes()),
        (44, &sectors(granularity).to_le_bytes()),
        (48, &RANGE_SECTORS_MAX.to_le_bytes()),
        (52, &RANGES_MAX.to_le_bytes()),
        (56, &[1]),
    ])
}
