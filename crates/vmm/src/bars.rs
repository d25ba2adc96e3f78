//! Where BARs meet the machine: its bus for memory-mapped I/O, and KVM's ioeventfds for doorbells.

use std::sync::{Arc, Weak};

use device::{Bus, BusHandler, MapError};
use kvm::{Doorbell, Vm};

/// The machine's MMIO bus as PCI functions use it.
pub(crate) struct MachineBars {
    /// Weak, since the bus holds the ECAM, which holds the functions, which hold this.
    bus: Weak<Bus>,
    vm: Arc<Vm>,
}

impl MachineBars {
    /// BARs appear on `bus`, doorbells at `vm`.
    pub(crate) fn new(bus: &Arc<Bus>, vm: Arc<Vm>) -> Self {
        Self {
            bus: Arc::downgrade(bus),
            vm,
        }
    }
}

impl pci::BarSpace for MachineBars {
    fn map(&self, base: u64, size: u64, handler: Arc<dyn BusHandler>) -> Result<(), MapError> {
        let Some(bus) = self.bus.upgrade() else {
            return Err(MapError::NotMapped { base });
        };
        static SLOW: telemetry::RateLimited = telemetry::RateLimited::new();
        let bells = handler.doorbells();
        bus.map(base, size, handler)?;
        for bell in bells {
            // Without the kernel's help the write arrives at the handler, which treats both alike: slower, not wrong.
            if let Err(error) = self.vm.add_doorbell(Doorbell::Mmio(base + bell.offset), &bell.event)
                && let Some(admitted) = SLOW.admit()
            {
                let suppressed = admitted.suppressed;
                tracing::warn!(%error, suppressed, "doorbell without ioeventfd: its queue will be slow");
            }
        }
        Ok(())
    }

    fn unmap(&self, base: u64, _size: u64, handler: &Arc<dyn BusHandler>) {
        for bell in handler.doorbells() {
            if let Err(error) = self.vm.remove_doorbell(Doorbell::Mmio(base + bell.offset), &bell.event) {
                tracing::debug!(%error, "doorbell was not there");
            }
        }
        if let Some(bus) = self.bus.upgrade()
            && let Err(error) = bus.unmap(base)
        {
            tracing::warn!(%error, "a bar was not where it was mapped");
        }
    }
}
