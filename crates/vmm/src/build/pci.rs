//! The PCI root bus, and how virtio devices get into its slots.

use std::sync::Arc;

use boot::layout;
use device::Device;
use guestmem::GuestMemory;
use kvm::Vm;
use pci::{CONFIG_PORTS_BASE, CONFIG_PORTS_SIZE, ConfigPorts, ECAM_BUS_SIZE, Ecam, Root};
use virtio::{VirtioDevice, VirtioPci};
use virtio_devices::{Rng, RngOptions};

use super::BuildError;
use crate::bars::MachineBars;
use crate::interrupts::KvmMsiRoutes;
use crate::layout::{Layout, RNG_SLOT};
use crate::vcpu::Buses;

/// The root bus and what it takes to fill its slots.
pub(super) struct Slots {
    root: Arc<Root>,
    vm: Arc<Vm>,
    memory: GuestMemory,
}

/// An empty bus, visible to the guest.
pub(super) fn build(layout: &Layout, vm: &Arc<Vm>, memory: &GuestMemory, buses: &Buses) -> Result<Slots, BuildError> {
    let bars = Arc::new(MachineBars::new(&buses.mmio, Arc::clone(vm)));
    let root = Root::new(bars, layout.bar_windows());
    let ecam = Arc::new(Ecam::new(Arc::clone(&root)));
    buses
        .mmio
        .map(layout::ECAM_BASE, ECAM_BUS_SIZE, ecam)
        .map_err(BuildError::Map)?;
    let ports = Arc::new(ConfigPorts::new(Arc::clone(&root)));
    buses
        .pio
        .map(CONFIG_PORTS_BASE, CONFIG_PORTS_SIZE, ports)
        .map_err(BuildError::Map)?;
    Ok(Slots {
        root,
        vm: Arc::clone(vm),
        memory: memory.clone(),
    })
}

/// The entropy source, which every machine has.
pub(super) fn entropy(slots: &Slots) -> Result<Arc<dyn Device>, BuildError> {
    slots.plug(RNG_SLOT, Arc::new(Rng::new(RngOptions::named("rng0"))))
}

impl Slots {
    /// The bus as a part of its machine.
    pub(super) fn root(&self) -> Arc<dyn Device> {
        Arc::clone(&self.root) as _
    }

    /// Puts `device` into `slot`, with its transport and interrupts.
    pub(super) fn plug(&self, slot: u8, device: Arc<dyn VirtioDevice>) -> Result<Arc<dyn Device>, BuildError> {
        let routes = KvmMsiRoutes::new(self.vm.irq_routing(), device.name(), VirtioPci::vectors(&*device))
            .map_err(BuildError::Interrupt)?;
        let (transport, endpoint) =
            VirtioPci::new(device, self.memory.clone(), Arc::new(routes)).map_err(BuildError::Transport)?;
        self.root.plug(slot, endpoint).map_err(BuildError::Plug)?;
        Ok(transport)
    }
}
