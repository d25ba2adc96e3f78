//! A disk as the machine process sees it: its file, or chain of files, is handed over beside.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{DiskBus, DiskCache, DiskLimits, DiskSector};
use crate::name::Name;
use crate::problem::Problems;

/// Longest serial, bytes (virtio 1.2 §5.2.6.1, `VIRTIO_BLK_ID_BYTES`).
pub const DISK_SERIAL_MAX: usize = 20;
/// Most disks of a machine: each may need a slot of the root bus, of which 31 are free.
pub(crate) const DISKS_MAX: usize = 16;
/// Most request queues of a disk.
const DISK_QUEUES_MAX: u16 = 16;

/// A disk that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// What requests for it, logs and errors call it; unique within the machine.
    pub name: Name,
    /// What the guest reads as its serial; up to [`DISK_SERIAL_MAX`] printable ASCII characters.
    pub serial: String,
    /// How the guest reaches it.
    pub bus: DiskBus,
    /// The guest may only read.
    pub read_only: bool,
    /// It is a disc in a CD-ROM drive; then the bus is SCSI and the disk read-only.
    pub cdrom: bool,
    /// Request queues of a virtio disk; logical units share the controller's.
    pub queues: u16,
    /// What the host does with data on its way to the storage.
    pub cache: DiskCache,
    /// Logical sector; of no meaning for a CD-ROM, whose sectors have 2048 bytes.
    pub sector: DiskSector,
    /// Rates that are kept to from the start.
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// Notes what is wrong with a disk that was written as `field`.
    pub fn check(&self, field: &str, problems: &mut Problems) {
        if self.serial.len() > DISK_SERIAL_MAX || !self.serial.bytes().all(|b| b.is_ascii_graphic()) {
            problems.add(
                format!("{field}.serial"),
                format_args!("take up to {DISK_SERIAL_MAX} printable ASCII characters"),
            );
        }
        if !(1..=DISK_QUEUES_MAX).contains(&self.queues) {
            problems.add(
                format!("{field}.queues"),
                format_args!("{}; take 1 to {DISK_QUEUES_MAX}", self.queues),
            );
        }
        if self.cdrom && self.bus != DiskBus::Scsi {
            problems.add(format!("{field}.cdrom"), "a CD-ROM needs bus scsi");
        }
        if self.cdrom && !self.read_only {
            problems.add(format!("{field}.cdrom"), "a CD-ROM is read-only");
        }
        self.limits.check(&format!("{field}.limits"), problems);
    }
}

/// Notes what is wrong with all disks of a machine.
pub(crate) fn check_all(disks: &[DiskSpec], problems: &mut Problems) {
    if disks.len() > DISKS_MAX {
        problems.add(
            "disks",
            format_args!("{} disks; a machine has at most {DISKS_MAX}", disks.len()),
        );
    }
    let mut names = HashSet::new();
    for (index, disk) in disks.iter().enumerate() {
        let field = format!("disks[{index}]");
        disk.check(&field, problems);
        if !names.insert(&disk.name) {
            problems.add(format!("{field}.name"), format_args!("{} is named twice", disk.name));
        }
    }
}
