//! Disks of machines.

use api_types::{DiskLimits, DiskMirror, DiskWish, Vm, VmDisk, VmDiskList, VolumeAccepted};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(vm: &str, disk: &str, verb: &str) -> String {
    format!("/v1/vms/{}/disks/{}{verb}", segment(vm), segment(disk))
}

/// Where a disk is named, it is by its name in the machine, or by the name or id of its volume.
impl Client {
    /// What the disks of a machine that runs are and did.
    pub async fn disks(&self, vm: &str) -> Result<Vec<VmDisk>, ClientError> {
        let path = format!("/v1/vms/{}/disks", segment(vm));
        Ok(self.get::<VmDiskList>(&path).await?.items)
    }

    /// Gives a machine another disk: at once on the SCSI bus of one that runs, else from its next start on.
    pub async fn attach_disk(&self, vm: &str, disk: &DiskWish) -> Result<Vm, ClientError> {
        self.post(&format!("/v1/vms/{}/disks", segment(vm)), disk).await
    }

    /// Takes a disk from a machine.
    pub async fn detach_disk(&self, vm: &str, disk: &str) -> Result<Vm, ClientError> {
        self.delete_for(&path(vm, disk, "")).await
    }

    /// Begins to have a disk of a running machine go on in an overlay.
    pub async fn snapshot_disk(&self, vm: &str, disk: &str) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(vm, disk, "/snapshot"), &Nothing {}).await
    }

    /// Begins to make one file of all files of a disk of a running machine.
    pub async fn stream_disk(&self, vm: &str, disk: &str) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(vm, disk, "/stream"), &Nothing {}).await
    }

    /// Begins to copy a disk of a running machine.
    pub async fn mirror_disk(&self, vm: &str, disk: &str, mirror: &DiskMirror) -> Result<VolumeAccepted, ClientError> {
        self.post(&path(vm, disk, "/mirror"), mirror).await
    }

    /// Keeps a disk to these rates, and to no others.
    pub async fn limit_disk(&self, vm: &str, disk: &str, limits: &DiskLimits) -> Result<Vm, ClientError> {
        self.post(&path(vm, disk, "/limits"), limits).await
    }
}

#[derive(serde::Serialize)]
struct Nothing {}
