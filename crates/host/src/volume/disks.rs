//! Disks of machines that run: what they do, how fast they may, and disks that come and go on the SCSI bus.
//!
//! | change | order | a daemon that dies in between leaves |
//! |---|---|---|
//! | attach | the record, then the process | a disk that the next start has, and that nobody else gets |
//! | detach | the process, then the record | the same |
//! | limits | the process, then the record | limits that end with the process |

use std::sync::Arc;

use api_types::{DiskRequests, ErrorCode, Vm, VmDisk, VmDiskLayer, VmPhase};
use control::{DiskChange, DiskLatency, DiskReport};
use spec::{DiskBus, DiskLimits, DiskWish, Name, NameError, Problems, VmPlan, VmSpec};

use super::edits::{attaching, detaching, limiting, position};
use crate::failure::Failure;
use crate::host::Host;
use crate::machine;
use crate::volume_store::{idle, not_copied};

impl Host {
    /// The disks of a machine that runs or is paused.
    pub async fn disks(&self, vm: &str) -> Result<Vec<VmDisk>, Failure> {
        let (_, machine) = self.machine(vm).await?;
        let reports = machine.disk_reports().await?;
        Ok(reports.into_iter().map(describe).collect())
    }

    /// Keeps a disk to other rates: from now on if the machine runs, and from each start on.
    pub async fn limit_disk(
        &self,
        vm: &str,
        revision: Option<u64>,
        disk: &str,
        limits: DiskLimits,
    ) -> Result<Vm, Failure> {
        let mut problems = Problems::new();
        limits.check("limits", &mut problems);
        problems
            .into_result(())
            .map_err(|problems| Failure::refused("the limits can not be kept to", &problems))?;
        let record = self.vm(vm).await?;
        let (id, machine) = self.machine(vm).await?;
        let index = self.place(&record, disk).await?;
        if runs(&record) {
            let name = name_at(&record.spec, index)?;
            let called = name.to_string();
            machine
                .change_disk(revision, name, DiskChange::Limit { limits }, Vec::new())
                .await?;
            machine.note_edit(|| limiting(called.clone(), limits)).await?;
        } else {
            machine.edit(revision, limiting(disk.to_owned(), limits)).await?;
        }
        self.vm(&id.to_string()).await
    }

    /// Gives a machine that runs a disk on its SCSI bus.
    pub(super) async fn attach_live(&self, vm: &Vm, revision: Option<u64>, mut wish: DiskWish) -> Result<(), Failure> {
        if wish.bus != DiskBus::Scsi {
            let text =
                "the machine runs, and only disks on the SCSI bus come and go then: take bus scsi, or stop it first";
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        let name = match (&wish.name, &wish.volume) {
            (Some(name), _) => name.clone(),
            (None, Some(volume)) => self.volume(volume).await?.name,
            (None, None) => format!("disk{}", vm.spec.disks.len() + 1),
        };
        // By this it is found again, whatever others attach meanwhile.
        wish.name = Some(name.clone());
        let (_, machine) = self.machine(&vm.id.to_string()).await?;
        let edit = attaching(Arc::clone(&self.0.context), wish);
        machine.edit_live(revision, edit).await?;
        let Err(mut failure) = self.attach_written(vm, &name).await else {
            return Ok(());
        };
        if matches!(failure.code, ErrorCode::Timeout | ErrorCode::MachineFailed) {
            // It may have it, or be about to: the record must not say that the volume is free.
            failure.detail = format!(
                "{}; disk {name} stays attached in the record: karat show tells whether the machine has it already",
                failure.detail
            );
        } else {
            machine.note_edit(|| detaching(name.clone())).await?;
        }
        Err(failure)
    }

    /// Has the process take the disk of this name, which the machine's record has already.
    async fn attach_written(&self, vm: &Vm, name: &str) -> Result<(), Failure> {
        let spec = self.vm(&vm.id.to_string()).await?.spec;
        let index = spec.disks.iter().position(|disk| disk.name.as_deref() == Some(name));
        let index = index.ok_or_else(|| changed(&spec.name))?;
        let name = name_at(&spec, index)?;
        let context = Arc::clone(&self.0.context);
        let opened = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
            let refused = |problems| Failure::refused("the disk can not be attached", &problems);
            let plan = VmPlan::new(&spec, &context.limits).map_err(refused)?;
            let disk = plan.disks.iter().find(|disk| disk.index == index);
            let disk = disk.ok_or_else(|| changed(&spec.name))?;
            let (chain, fds) = machine::open_one(&context, disk)?;
            let spec = Box::new(disk.disk.clone());
            Ok((DiskChange::Attach { spec, chain }, fds))
        });
        let opened = opened.await;
        let (change, fds) = opened.map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))??;
        let (_, machine) = self.machine(&vm.id.to_string()).await?;
        machine.change_disk(None, name, change, fds).await
    }

    /// Takes a disk from the SCSI bus of a machine that runs.
    pub(super) async fn detach_live(&self, vm: &Vm, revision: Option<u64>, disk: &str) -> Result<(), Failure> {
        let index = self.place(vm, disk).await?;
        let name = name_at(&vm.spec, index)?;
        let wish = vm.spec.disks.get(index);
        if wish.is_some_and(|disk| disk.bus != DiskBus::Scsi) {
            let text = format!("disk {name} is not on the SCSI bus: stop the machine first");
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        let volume = wish.and_then(|disk| disk.volume.clone());
        self.registry()
            .change(move |change| -> Result<_, Failure> {
                let volume = volume.map(|volume| change.volume(&volume)).transpose()?.flatten();
                volume.map_or(Ok(()), |volume| {
                    idle(&volume)?;
                    not_copied(change, &volume)
                })
            })
            .await?;
        let (_, machine) = self.machine(&vm.id.to_string()).await?;
        let detached = machine.change_disk(revision, name.clone(), DiskChange::Detach, Vec::new());
        match detached.await {
            Ok(()) => {}
            // The process has let go of it before.
            Err(failure) if failure.code == ErrorCode::NotFound => {}
            Err(failure) => return Err(failure),
        }
        machine.note_edit(|| detaching(name.to_string())).await
    }

    /// Where a machine's record has a disk. `disk` is its name there, or the name or id of its volume.
    async fn place(&self, vm: &Vm, disk: &str) -> Result<usize, Failure> {
        let (spec, disk) = (vm.spec.clone(), disk.to_owned());
        self.registry()
            .change(move |change| position(change, &spec, &disk))
            .await
    }
}

/// Whether a machine has a process that can be told of changes.
pub(super) const fn runs(vm: &Vm) -> bool {
    matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused)
}

fn changed(vm: &str) -> Failure {
    let text = format!("the disks of machine {vm} were changed by somebody else meanwhile: read it again");
    Failure::new(ErrorCode::WrongState, text)
}

/// What a machine calls the disk at this place.
pub(crate) fn name_at(spec: &VmSpec, index: usize) -> Result<Name, Failure> {
    let name = spec.disks.get(index).and_then(|disk| disk.name.clone());
    let parsed = name.unwrap_or_else(|| format!("disk{}", index + 1)).parse();
    parsed.map_err(|error: NameError| Failure::of(ErrorCode::Internal, &error))
}

fn describe(report: DiskReport) -> VmDisk {
    let requests = |latency: &DiskLatency| DiskRequests {
        count: latency.count,
        total_ns: latency.total_ns,
        p50_us: latency.p50_us,
        p99_us: latency.p99_us,
        p999_us: latency.p999_us,
    };
    let layers = report.layers.into_iter().map(|layer| VmDiskLayer {
        path: layer.name,
        format: layer.format,
    });
    VmDisk {
        name: report.name.to_string(),
        size_bytes: report.size_bytes,
        layers: layers.collect(),
        limits: report.limits,
        reads: requests(&report.reads),
        writes: requests(&report.writes),
        flushes: requests(&report.flushes),
        trims: requests(&report.trims),
        read_bytes: report.read_bytes,
        written_bytes: report.written_bytes,
        errors: report.errors,
    }
}
