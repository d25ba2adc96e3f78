//! Giving disks to machines, and taking them away.

use std::sync::Arc;

use api_types::{ErrorCode, Vm};
use spec::{DiskWish, VmPlan};

use super::disks::runs;
use super::edits::{REFUSED, attaching, detaching};
use crate::failure::Failure;
use crate::host::Host;
use crate::machine;

impl Host {
    /// Gives a machine another disk. One that has no process has it from its next start on; one that runs has it at once, on its
    /// SCSI bus.
    pub async fn attach_disk(&self, vm: &str, revision: Option<u64>, wish: DiskWish) -> Result<Vm, Failure> {
        let (id, machine) = self.machine(vm).await?;
        self.probe_disk(vm, &wish).await?;
        let record = self.vm(vm).await?;
        if runs(&record) {
            self.attach_live(&record, revision, wish).await?;
        } else {
            let edit = attaching(Arc::clone(&self.0.context), wish);
            machine.edit(revision, edit).await?;
        }
        self.vm(&id.to_string()).await
    }

    /// Takes a disk from a machine: from one that runs only if it is on the SCSI bus. `disk` is its name there, or the name or id
    /// of its volume.
    pub async fn detach_disk(&self, vm: &str, revision: Option<u64>, disk: &str) -> Result<Vm, Failure> {
        let (id, machine) = self.machine(vm).await?;
        let record = self.vm(vm).await?;
        if runs(&record) {
            self.detach_live(&record, revision, disk).await?;
        } else {
            machine.edit(revision, detaching(disk.to_owned())).await?;
        }
        self.vm(&id.to_string()).await
    }

    /// Tries to open what the disk names, so that mistakes are told now and not only when the machine starts.
    async fn probe_disk(&self, vm: &str, wish: &DiskWish) -> Result<(), Failure> {
        let mut spec = self.vm(vm).await?.spec;
        spec.disks = vec![wish.clone()];
        let context = Arc::clone(&self.0.context);
        let plan = VmPlan::new(&spec, &context.limits).map_err(|problems| Failure::refused(REFUSED, &problems))?;
        tokio::task::spawn_blocking(move || machine::probe(&context, &plan))
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
            .map_err(|problems| Failure::refused(REFUSED, &problems))
    }
}
