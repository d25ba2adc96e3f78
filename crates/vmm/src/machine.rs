//! A machine that was built: its threads and devices, started, paused and torn down together.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use chipset::EventRegister;
use device::{Device, Draining};
use kvm::Vm;
use spec::Name;
use virtio_devices::DiskSnapshot;

use crate::disks::AttachError;
use crate::disks::{DiskDevices, MachineDisk};
use crate::hardware::Hardware;
use crate::saved::{self, Parts, SaveMachineError};
use crate::vcpu::{Buses, VcpuThreads};

/// All parts. Order of fields is order of destruction: threads first.
pub(crate) struct Machine {
    threads: VcpuThreads,
    vm: Arc<Vm>,
    devices: Vec<Arc<dyn Device>>,
    disks: DiskDevices,
    /// Where the power button is.
    events: Arc<EventRegister>,
    /// Holds what is mapped. The last to go.
    _buses: Buses,
}

impl Machine {
    pub(crate) const fn new(
        threads: VcpuThreads,
        vm: Arc<Vm>,
        devices: Vec<Arc<dyn Device>>,
        disks: DiskDevices,
        events: Arc<EventRegister>,
        buses: Buses,
    ) -> Self {
        Self {
            threads,
            vm,
            devices,
            disks,
            events,
            _buses: buses,
        }
    }
}

impl Hardware for Machine {
    fn start(&mut self, asked: Instant) {
        self.devices.iter().for_each(|device| device.start());
        self.threads.release();
        tracing::debug!(after = ?asked.elapsed(), "vcpus released");
    }

    fn pause(&mut self) {
        self.threads.hold();
        let draining: Vec<Draining> = self.devices.iter().map(|device| device.pause()).collect();
        draining.into_iter().for_each(Draining::wait);
    }

    fn resume(&mut self) {
        self.devices.iter().for_each(|device| device.resume());
        self.threads.release();
    }

    fn save(&self, directory: BorrowedFd<'_>) -> Result<(), SaveMachineError> {
        let parts = Parts {
            vm: &self.vm,
            devices: &self.devices,
            vcpus: self.threads.save().map_err(SaveMachineError::Kvm)?,
        };
        saved::save(&parts, directory)
    }

    fn press_power_button(&self) {
        self.events.press_power_button();
    }

    fn disk_resized(&self, disk: &Name) {
        self.disks.resized(disk);
    }

    fn attach(&mut self, disk: &MachineDisk) -> Result<(), AttachError> {
        self.disks.attach(disk)
    }

    fn detach(&mut self, disk: &Name) -> Result<(), AttachError> {
        self.disks.detach(disk)
    }

    fn disk_figures(&self) -> Vec<(Name, DiskSnapshot)> {
        self.disks.figures()
    }

    fn tear_down(self: Box<Self>) {
        let Self {
            threads,
            vm: _vm,
            devices,
            disks: _,
            events: _,
            _buses,
        } = *self;
        drop(threads);
        // Workers end here, with their requests: nothing touches guest memory or files afterwards.
        devices.iter().for_each(|device| device.reset());
    }
}
