//! The devices of one build of a machine that its disks are behind.

use std::sync::Arc;

use spec::Name;
use virtio_devices::Blk;

use super::MachineDisk;
use crate::hardware::AttachError;

/// All of them.
#[derive(Default)]
pub(crate) struct DiskDevices {
    blks: Vec<(Name, Arc<Blk>)>,
}

impl DiskDevices {
    /// A disk has a virtio-blk device of its own.
    pub(crate) fn add_blk(&mut self, disk: Name, device: Arc<Blk>) {
        self.blks.push((disk, device));
    }

    /// Tells the guest that `disk` has grown.
    pub(crate) fn resized(&self, disk: &Name) {
        for (_, device) in self.blks.iter().filter(|(name, _)| name == disk) {
            device.resized();
        }
    }

    pub(crate) fn attach(&mut self, _disk: &MachineDisk) -> Result<(), AttachError> {
        Err(AttachError::NoBus)
    }

    pub(crate) fn detach(&mut self, disk: &Name) -> Result<(), AttachError> {
        Err(AttachError::NotScsi(disk.clone()))
    }
}
