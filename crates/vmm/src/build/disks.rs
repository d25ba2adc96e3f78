//! Disks: a virtio block device for each.

use std::sync::Arc;

use device::Device;
use virtio_devices::{Blk, BlkOptions};

use super::BuildError;
use super::pci::Slots;
use crate::disks::{DiskDevices, Disks, MachineDisk};
use crate::layout::Layout;

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
    for (disk, &slot) in disks.iter().zip(layout.disk_slots()) {
        let blk = Arc::new(block_device(disk));
        devices.add_blk(disk.spec.name.clone(), Arc::clone(&blk));
        plugged.push(slots.plug(slot, blk)?);
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
