//! A machine that was built: its threads and devices, started, paused and torn down together.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use chipset::EventRegister;
use device::{Device, Draining};
use guestmem::GuestMemory;
use kvm::Vm;
use migration::{Fault, PageSet};
use spec::Name;
use virtio_devices::DiskSnapshot;

use crate::disks::AttachError;
use crate::disks::{DiskDevices, MachineDisk};
use crate::hardware::{Hardware, Movable};
use crate::saved::{self, Parts, SaveMachineError, State};
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

    fn parts(&self) -> Result<Parts<'_>, SaveMachineError> {
        Ok(Parts {
            vm: &self.vm,
            devices: &self.devices,
            vcpus: self.threads.save().map_err(SaveMachineError::Kvm)?,
        })
    }
}

/// Chunks of [`migration::CHUNK_PAGES`] pages in front of a region. Regions begin on the bounds of them.
const fn chunks_before(file_offset: u64) -> u64 {
    file_offset / migration::CHUNK_BYTES as u64
}

impl Movable for Machine {
    fn memory(&self) -> GuestMemory {
        self.vm.memory().clone()
    }

    fn log_writes(&mut self, on: bool) -> Result<(), Fault> {
        if on {
            self.vm.memory().start_dirty_log();
        } else {
            self.vm.memory().stop_dirty_log();
        }
        Ok(self.vm.set_dirty_log(on)?)
    }

    fn take_written(&mut self) -> Result<PageSet, Fault> {
        let memory = self.vm.memory();
        let mut written = PageSet::empty(memory.ram_bytes() / guestmem::layout::PAGE_SIZE);
        for (slot, region) in memory.regions().enumerate() {
            let logs = [self.vm.take_dirty_log(slot)?, region.dirty.take()];
            for words in logs {
                for (chunk, word) in (chunks_before(region.file_offset)..).zip(words) {
                    written.add(chunk, word);
                }
            }
        }
        Ok(written)
    }

    fn throttle(&mut self, percent: u8) {
        self.threads.throttle(percent);
    }

    fn state(&self) -> Result<Vec<u8>, Fault> {
        Ok(saved::encode(&self.parts()?)?)
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), Fault> {
        let mut state = State::parse(state, self.vm.topology().vcpus())?;
        state.load_devices(&self.devices, &self.vm)?;
        Ok(state.load_vcpus(self.threads.held(), &self.vm)?)
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
        saved::save(&self.parts()?, directory)
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
