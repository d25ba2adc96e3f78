//! Features and configuration space of a SCSI host (virtio 1.2 §5.6.3, §5.6.4), and what it is made with.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio::DeviceKind;

use super::address::Lun;
use crate::config_space;

/// Device type 8; PCI class "SCSI controller".
pub(super) const KIND: DeviceKind = DeviceKind {
    id: 8,
    class: [0x01, 0x00, 0x00],
};

/// Queues before the first request queue: control, events.
pub(super) const FIRST_REQUEST_QUEUE: u16 = 2;
/// Index of the control queue; the other one is for events.
pub(super) const CONTROL_QUEUE: u16 = 0;

/// Bytes of configuration space.
const SIZE: usize = 36;
/// Offset of `sense_size`.
const SENSE_SIZE_AT: u64 = 20;
/// Offset of `cdb_size`.
const CDB_SIZE_AT: u64 = 24;
/// `sense_size` after reset (virtio 1.2 §5.6.4).
const SENSE_SIZE: u32 = 96;
/// `cdb_size` after reset (virtio 1.2 §5.6.4).
const CDB_SIZE: u32 = 32;
/// Most bytes of sense data a driver may make room for: SPC-4's limit of 252 with room to spare.
const SENSE_SIZE_MAX: u32 = 1024;
/// Longest CDB a driver may make room for: what SPC-4 §4.2 has.
const CDB_SIZE_MAX: u32 = 260;
/// Bytes of an event (virtio 1.2 §5.6.6.3).
pub(super) const EVENT_SIZE: usize = 16;
/// Most data buffers of a request, when the queue is long enough: as of the block device.
const SEGMENTS_MAX: u32 = 254;
/// Longest transfer of one command, bytes. Bounds what a reset may have to wait for; told in VPD page 0xb0 and, in sectors of
/// 512 bytes, in configuration space.
pub(super) const TRANSFER_BYTES_MAX: u64 = 32 << 20;
/// Commands Linux may have in flight per unit, at most. Linux keeps to its own lower limits.
const COMMANDS_PER_UNIT: u32 = 128;

pub(super) mod feature {
    /// Events tell of units that come and go.
    pub(crate) const HOTPLUG: u64 = 1 << 1;
    /// Events tell of units that change.
    pub(crate) const CHANGE: u64 = 1 << 2;
}

/// What a SCSI host is.
#[derive(Debug, Clone)]
pub struct ScsiOptions {
    /// Unique in the machine, as `scsi0`.
    pub name: String,
    /// Queues for commands, each with a thread of its own; 1–64, else the nearest.
    pub request_queues: u16,
    /// Entries of each queue; a power of two, 4–1024, else the nearest.
    pub queue_size: u16,
}

impl ScsiOptions {
    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        let size = self.queue_size.clamp(4, 1024);
        // Rounds down: 1024 is a power of two itself.
        let size = 1 << size.ilog2();
        vec![size; usize::from(self.request_queues.clamp(1, 64) + FIRST_REQUEST_QUEUE)]
    }
}

/// What a logical unit is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A disk with the sectors of its [`disk::Disk`], writable unless that is read-only.
    Disk,
    /// A CD or DVD in a drive: read-only, blocks of 2048 bytes, over a disk of 512-byte sectors. Can be ejected by the guest; it
    /// is in the drive again after a load command or a reset.
    CdRom,
}

/// What a logical unit is, beside its disk.
#[derive(Debug, Clone)]
pub struct LunOptions {
    /// What the guest finds under `/dev/disk/by-id`, and what its identifiers are made from; at most 64 bytes of it are told,
    /// anything but printable ASCII as `_`. Without one, the unit has no serial number, and is named by its place.
    pub serial: String,
    /// What it is.
    pub medium: Medium,
}

/// The sizes that a driver may choose: how long a CDB is in requests, and sense data in answers.
pub(super) struct Layout {
    cdb: AtomicU32,
    sense: AtomicU32,
}

impl Layout {
    pub(super) const fn new() -> Self {
        Self {
            cdb: AtomicU32::new(CDB_SIZE),
            sense: AtomicU32::new(SENSE_SIZE),
        }
    }

    /// Bytes of a CDB in a request, and of sense data in an answer.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let cdb = self.cdb.load(Ordering::Relaxed);
        let sense = self.sense.load(Ordering::Relaxed);
        (cdb as usize, sense as usize)
    }

    /// Both as they are.
    pub(super) fn state(&self) -> (u32, u32) {
        (self.cdb.load(Ordering::Relaxed), self.sense.load(Ordering::Relaxed))
    }

    /// False, and nothing changed, if a driver can not choose them.
    pub(super) fn set_state(&self, cdb: u32, sense: u32) -> bool {
        let possible = sense <= SENSE_SIZE_MAX && (1..=CDB_SIZE_MAX).contains(&cdb);
        if possible {
            self.cdb.store(cdb, Ordering::Relaxed);
            self.sense.store(sense, Ordering::Relaxed);
        }
        possible
    }

    pub(super) fn reset(&self) {
        self.cdb.store(CDB_SIZE, Ordering::Relaxed);
        self.sense.store(SENSE_SIZE, Ordering::Relaxed);
    }

    /// A write to configuration space. A size that makes no sense changes nothing: the driver can read that.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let Ok(&value) = <&[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(value);
        match offset {
            SENSE_SIZE_AT if value <= SENSE_SIZE_MAX => self.sense.store(value, Ordering::Relaxed),
            CDB_SIZE_AT if (1..=CDB_SIZE_MAX).contains(&value) => self.cdb.store(value, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Configuration space as it is now.
    pub(super) fn space(&self, queue_sizes: &[u16]) -> [u8; SIZE] {
        let queues = u32::try_from(queue_sizes.len()).unwrap_or(u32::MAX);
        let size = u32::from(queue_sizes.last().copied().unwrap_or_default());
        let segments = size.saturating_sub(2).clamp(1, SEGMENTS_MAX);
        let sectors = u32::try_from(TRANSFER_BYTES_MAX / 512).unwrap_or(u32::MAX);
        let event_size = u32::try_from(EVENT_SIZE).unwrap_or(0);
        config_space::lay_out(&[
            (0, &queues.saturating_sub(FIRST_REQUEST_QUEUE.into()).to_le_bytes()),
            (4, &segments.to_le_bytes()),
            (8, &sectors.to_le_bytes()),
            (12, &COMMANDS_PER_UNIT.min(size).to_le_bytes()),
            (16, &event_size.to_le_bytes()),
            (20, &self.sense.load(Ordering::Relaxed).to_le_bytes()),
            (24, &self.cdb.load(Ordering::Relaxed).to_le_bytes()),
            // One channel; `max_target`, `max_lun`.
            (30, &u16::from(u8::MAX).to_le_bytes()),
            (32, &u32::from(Lun::UNIT_MAX).to_le_bytes()),
        ])
    }
}
