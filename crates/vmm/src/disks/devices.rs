//! The devices of one build of a machine that its disks are behind.

use std::sync::Arc;

use spec::Name;
use virtio_devices::{Blk, DiskSnapshot, Lun, LunOptions, Medium, Scsi, ScsiError};

use super::{MachineDisk, Place};

/// Why a disk can not come or go.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no controller.
    #[error("the machine has no SCSI bus: give it a disk with bus scsi when it is made")]
    NoBus,
    /// It is not on that bus.
    #[error("disk {0} is not on the SCSI bus: only disks there come and go while the machine runs")]
    NotScsi(Name),
    /// The controller refuses.
    #[error("disk {disk} can not be attached or detached")]
    Bus {
        /// Which.
        disk: Name,
        /// Why.
        #[source]
        source: ScsiError,
    },
}

/// All of them.
#[derive(Default)]
pub(crate) struct DiskDevices {
    blks: Vec<(Name, Arc<Blk>)>,
    scsi: Option<Arc<Scsi>>,
    units: Vec<(Name, Lun)>,
}

impl DiskDevices {
    /// A disk has a virtio-blk device of its own.
    pub(crate) fn add_blk(&mut self, disk: Name, device: Arc<Blk>) {
        self.blks.push((disk, device));
    }

    /// There is a SCSI bus.
    pub(crate) fn set_scsi(&mut self, controller: Arc<Scsi>) {
        self.scsi = Some(controller);
    }

    /// Tells the guest that `disk` has grown.
    pub(crate) fn resized(&self, disk: &Name) {
        for (_, device) in self.blks.iter().filter(|(name, _)| name == disk) {
            device.resized();
        }
        if let (Some(scsi), Some(lun)) = (&self.scsi, self.lun(disk)) {
            // Units come and go by this thread alone, so it is there.
            let _ = scsi.resized(lun);
        }
    }

    /// Puts `disk` on the SCSI bus.
    pub(crate) fn attach(&mut self, disk: &MachineDisk) -> Result<(), AttachError> {
        let name = disk.spec.name.clone();
        let (Some(scsi), Place::Target(target)) = (&self.scsi, disk.place) else {
            return Err(AttachError::NoBus);
        };
        let Some(lun) = Lun::new(target, 0) else {
            return Err(AttachError::NoBus);
        };
        let options = LunOptions {
            serial: disk.spec.serial.clone(),
            medium: if disk.spec.cdrom { Medium::CdRom } else { Medium::Disk },
        };
        scsi.attach(lun, disk.top(), options)
            .map_err(|source| AttachError::Bus {
                disk: name.clone(),
                source,
            })?;
        self.units.push((name, lun));
        Ok(())
    }

    /// Takes `disk` from the SCSI bus; what was in flight is finished when this returns.
    pub(crate) fn detach(&mut self, disk: &Name) -> Result<(), AttachError> {
        let (Some(scsi), Some(lun)) = (&self.scsi, self.lun(disk)) else {
            return Err(AttachError::NotScsi(disk.clone()));
        };
        let leaving = scsi.detach(lun).map_err(|source| AttachError::Bus {
            disk: disk.clone(),
            source,
        })?;
        leaving.wait();
        self.units.retain(|(name, _)| name != disk);
        Ok(())
    }

    /// What each disk did since these devices were built.
    pub(crate) fn figures(&self) -> Vec<(Name, DiskSnapshot)> {
        let blks = self
            .blks
            .iter()
            .map(|(name, device)| (name.clone(), device.figures().snapshot()));
        let units = self.units.iter().filter_map(|(name, lun)| {
            let figures = self.scsi.as_ref()?.figures(*lun)?;
            Some((name.clone(), figures.snapshot()))
        });
        blks.chain(units).collect()
    }

    fn lun(&self, disk: &Name) -> Option<Lun> {
        self.units.iter().find(|(name, _)| name == disk).map(|(_, lun)| *lun)
    }
}
