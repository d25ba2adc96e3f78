//! Disks: a virtio block device for each, or a place on the machine's SCSI bus.

use std::sync::Arc;

use device::Device;
use virtio_devices::{Blk, BlkOptions, Scsi, ScsiOptions};

use super::BuildError;
use super::pci::Slots;
use crate::disks::{DiskDevices, Disks, MachineDisk, Place};
use crate::layout::{Layout, SCSI_SLOT};

/// Entries of each request queue. Linux keeps up to that many requests in flight per queue.
const QUEUE_SIZE: u16 = 256;

/// Plugs all of them in; the disks themselves stay open for the next build.
pub(super) fn build(
    disks: &Disks,
    layout: &Layout,
    slots: &Slots,
) -> Result<(DiskDevices, Vec<Arc<dyn Device>>), BuildError> {
    let mut devices = DiskDevices::default();
    let mut plugged = Vec::new();
    if let Some(request_queues) = layout.scsi_queues() {
        let scsi = Arc::new(Scsi::new(ScsiOptions {
            name: "scsi0".to_owned(),
            request_queues,
            queue_size: QUEUE_SIZE,
        }));
        devices.set_scsi(Arc::clone(&scsi));
        plugged.push(slots.plug(SCSI_SLOT, scsi)?);
    }
    for disk in disks.iter() {
        match disk.place {
            Place::Slot(slot) => {
                let blk = Arc::new(block_device(disk));
                devices.add_blk(disk.spec.name.clone(), Arc::clone(&blk));
                plugged.push(slots.plug(slot, blk)?);
            }
            Place::Target(_) => devices.attach(disk).map_err(BuildError::Scsi)?,
        }
    }
    Ok((devices, plugged))
}

fn block_device(disk: &MachineDisk) -> Blk {
    let options = BlkOptions {
        name: disk.spec.name.to_string(),
        serial: disk.spec.serial.clone(),
        queues: disk.spec.queues,
        queue_size: QUEUE_SIZE,
    };
    Blk::new(disk.top(), options)
}
