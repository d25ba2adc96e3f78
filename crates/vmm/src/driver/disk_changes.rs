//! Changes to the disks of a machine that exists.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use control::{DiskChain, DiskChange, DiskLayer, Refusal, RefusalKind, VmAction, VmEvent};
use spec::{DiskBus, DiskLimits, DiskSpec, Name, Problems};

use virtio_devices::DiskSnapshot;

use super::Driver;
use crate::action::{Action, Notice, Ticket};
use crate::disks::{JobNews, MachineDisk, Tell};
use crate::files::LayerFiles;
use crate::story::whole;

fn refusal(kind: RefusalKind, message: &dyn std::fmt::Display) -> Refusal {
    Refusal {
        kind,
        message: message.to_string(),
    }
}

fn failed(error: &dyn std::error::Error) -> Refusal {
    refusal(RefusalKind::Failed, &whole(error))
}

/// The only layer that came, and its files.
fn one_layer(layer: DiskLayer, files: Vec<OwnedFd>) -> Result<LayerFiles, Refusal> {
    let chain = DiskChain { layers: vec![layer] };
    let paired = crate::files::pair(&chain, files).map_err(|error| refusal(RefusalKind::BadFile, &error))?;
    let only = paired.0.into_iter().next();
    only.ok_or_else(|| refusal(RefusalKind::BadFile, &"no image came along"))
}

impl Driver {
    pub(super) fn change_disk(&mut self, ticket: Ticket, disk: &Name, change: DiskChange, files: Vec<OwnedFd>) {
        let changed = self.check(VmAction::ChangeDisk).and_then(|()| match change {
            DiskChange::Resize { size_bytes } => self.resize_disk(disk, size_bytes),
            DiskChange::Limit { limits } => self.limit_disk(disk, limits),
            DiskChange::Attach { spec, chain } => self.attach_disk(disk, *spec, &chain, files),
            DiskChange::Snapshot { overlay, backing } => self.snapshot_disk(disk, overlay, backing, files),
            DiskChange::Stream => self.stream_disk(disk),
            DiskChange::Mirror { target, is_zero, pivot } => self.mirror_disk(disk, target, files, (is_zero, pivot)),
            DiskChange::Cancel => self.cancel_disk_job(disk),
            DiskChange::Detach => self.detach_disk(disk),
        });
        self.answer(ticket, changed.map(|()| self.status()));
    }

    pub(super) fn report_disks(&self, ticket: Ticket) {
        let Some(machine) = &self.machine else { return };
        let figures = machine.hardware.as_ref().map(|hardware| hardware.disk_figures());
        let figures: HashMap<_, _> = figures.into_iter().flatten().collect();
        let idle = DiskSnapshot::default();
        let report = |disk: &MachineDisk| disk.report(figures.get(&disk.spec.name).unwrap_or(&idle));
        let disks = machine.blueprint.disks.iter().map(report).collect();
        self.outlet.send(Notice::Disks { ticket, disks });
    }

    fn disk(&mut self, name: &Name) -> Result<&mut MachineDisk, Refusal> {
        let machine = self.machine.as_mut();
        let disk = machine.and_then(|machine| machine.blueprint.disks.get_mut(name));
        disk.ok_or_else(|| refusal(RefusalKind::NoSuchDisk, &format_args!("the machine has no disk {name}")))
    }

    fn resize_disk(&mut self, name: &Name, size_bytes: u64) -> Result<(), Refusal> {
        self.disk(name)?.grow(size_bytes).map_err(|error| failed(&error))?;
        tracing::info!(disk = %name, size_bytes, "disk resized");
        self.with_hardware(|hardware| hardware.disk_resized(name));
        Ok(())
    }

    fn limit_disk(&mut self, name: &Name, limits: DiskLimits) -> Result<(), Refusal> {
        let mut problems = Problems::new();
        limits.check("limits", &mut problems);
        problems
            .into_result(())
            .map_err(|problems| refusal(RefusalKind::Failed, &problems))?;
        self.disk(name)?.limit(limits);
        tracing::info!(disk = %name, ?limits, "disk limited");
        Ok(())
    }

    fn attach_disk(
        &mut self,
        name: &Name,
        spec: DiskSpec,
        chain: &DiskChain,
        files: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let mut problems = Problems::new();
        spec.check("disk", &mut problems);
        if spec.name != *name || spec.bus != DiskBus::Scsi {
            problems.add(
                "disk",
                "a disk that is attached is on the SCSI bus, by the name it is attached by",
            );
        }
        problems
            .into_result(())
            .map_err(|problems| refusal(RefusalKind::Failed, &problems))?;
        let Some(machine) = self.machine.as_mut() else {
            return Err(refusal(RefusalKind::WrongState, &"there is no machine"));
        };
        let (disks, Some(hardware)) = (&mut machine.blueprint.disks, machine.hardware.as_mut()) else {
            return Err(refusal(RefusalKind::WrongState, &"the machine is being rebuilt"));
        };
        if disks.get(name).is_some() {
            return Err(refusal(
                RefusalKind::NoSuchDisk,
                &format_args!("the machine has a disk {name} already"),
            ));
        }
        let bad_file = |error: &dyn std::error::Error| refusal(RefusalKind::BadFile, &whole(error));
        let files = crate::files::pair(chain, files).map_err(|error| bad_file(&error))?;
        let disk = disks.add(spec, files).map_err(|error| bad_file(&error))?;
        if let Err(error) = hardware.attach(disk) {
            disks.remove(name).into_iter().for_each(MachineDisk::close);
            return Err(failed(&error));
        }
        tracing::info!(disk = %name, "disk attached");
        Ok(())
    }

    fn snapshot_disk(
        &mut self,
        name: &Name,
        overlay: DiskLayer,
        backing: String,
        files: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let files = one_layer(overlay, files)?;
        let taken = self.disk(name)?.snapshot(files, backing);
        taken.map_err(|error| failed(&error))?;
        tracing::info!(disk = %name, "snapshot taken: the disk goes on in the overlay");
        Ok(())
    }

    fn stream_disk(&mut self, name: &Name) -> Result<(), Refusal> {
        let tell = self.teller(name);
        self.disk(name)?.begin_stream(tell).map_err(|error| failed(&error))
    }

    fn mirror_disk(
        &mut self,
        name: &Name,
        target: DiskLayer,
        mut files: Vec<OwnedFd>,
        (is_zero, pivot): (bool, bool),
    ) -> Result<(), Refusal> {
        // The last one, behind those of the image.
        let note = if pivot { files.pop().map(File::from) } else { None };
        let files = one_layer(target, files)?;
        let tell = self.teller(name);
        self.disk(name)?
            .begin_mirror(files, is_zero, note, tell)
            .map_err(|error| failed(&error))
    }

    fn cancel_disk_job(&mut self, name: &Name) -> Result<(), Refusal> {
        match self.disk(name)?.cancel_job() {
            true => Ok(()),
            false => Err(refusal(RefusalKind::WrongState, &"nothing is at work on the disk")),
        }
    }

    /// Has the words of a job arrive here.
    fn teller(&self, name: &Name) -> Tell {
        let (queue, disk) = (self.queue.clone(), name.clone());
        Box::new(move |news| {
            // Without a driver the machine has ended, and took the job with it.
            let _ = queue.send(Action::DiskJob {
                disk: disk.clone(),
                news,
            });
        })
    }

    pub(super) fn disk_job(&mut self, name: &Name, news: JobNews) {
        let Ok(disk) = self.disk(name) else { return };
        let told = match news {
            JobNews::At {
                done_bytes,
                total_bytes,
            } => disk.job_at(done_bytes, total_bytes),
            JobNews::Ended => disk.end_job(),
        };
        if let Some((job, state)) = told {
            tracing::info!(disk = %name, ?job, ?state, "work on a disk");
            let disk = name.clone();
            self.outlet.send(Notice::Event(VmEvent::DiskJob { disk, job, state }));
        }
    }

    fn detach_disk(&mut self, name: &Name) -> Result<(), Refusal> {
        self.disk(name)?;
        let Some(machine) = self.machine.as_mut() else {
            return Ok(());
        };
        let disks = &mut machine.blueprint.disks;
        if let Some(hardware) = machine.hardware.as_mut() {
            disks
                .unlimited(|| hardware.detach(name))
                .map_err(|error| failed(&error))?;
        }
        disks.remove(name).into_iter().for_each(MachineDisk::close);
        tracing::info!(disk = %name, "disk detached");
        Ok(())
    }
}
