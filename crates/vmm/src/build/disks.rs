//! Disks: a raw image, and a virtio block device on it, each.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use device::Device;
use disk::Access;
use disk_raw::{RawDisk, RawOptions};
use spec::DiskSpec;
use virtio_devices::{Blk, BlkOptions};

use super::BuildError;
use super::pci::Slots;
use crate::layout::Layout;

/// Entries of each request queue. Linux keeps up to that many requests in flight per queue.
const QUEUE_SIZE: u16 = 256;

/// Plugs all of them in; the blueprint keeps the files for the next build.
pub(super) fn build(
    disks: &[DiskSpec],
    files: &[File],
    layout: &Layout,
    slots: &Slots,
) -> Result<Vec<Arc<dyn Device>>, BuildError> {
    let places = layout.disk_slots().iter().zip(disks.iter().zip(files)).enumerate();
    places
        .map(|(index, (&slot, (disk, file)))| {
            let name = format!("disk{index}");
            let fd = file.try_clone().map_err(BuildError::Descriptors)?;
            slots.plug(slot, Arc::new(device(name, disk, fd.into())?))
        })
        .collect()
}

fn device(name: String, disk: &DiskSpec, fd: OwnedFd) -> Result<Blk, BuildError> {
    let access = if disk.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let options = RawOptions {
        access,
        ..RawOptions::named(name.clone())
    };
    let image = RawDisk::from_fd(fd, options).map_err(BuildError::Disk)?;
    let options = BlkOptions {
        name,
        serial: disk.serial.clone(),
        queues: disk.queues,
        queue_size: QUEUE_SIZE,
    };
    Ok(Blk::new(Arc::new(image), options))
}
