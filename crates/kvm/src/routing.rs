//! Interrupts from devices into the guest: IOAPIC pins, and messages.
//!
//! KVM knows interrupts by GSI. GSIs 0–23 are the IOAPIC's pins (0–15 the PIC's too); those from 24 on are handed out to
//! messages one by one. KVM takes the whole table at once, so one owner, [`IrqRouting`], keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::error::CallError;

/// Pins of KVM's IOAPIC; GSI = pin.
pub const IOAPIC_PINS: u32 = 24;

/// Pins of one of the two PICs.
const PIC_PINS: u32 = 8;

/// Greatest GSI KVM takes, plus one (`KVM_MAX_IRQ_ROUTES`; a GSI must be below it too).
const GSI_LIMIT: u32 = 4096;

/// Why an interrupt could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The IOAPIC has no such pin.
    #[error("the ioapic has no pin {pin}; pins are 0 to {}", IOAPIC_PINS - 1)]
    NoSuchPin {
        /// What was asked for.
        pin: u32,
    },
    /// All GSIs are taken.
    #[error("no interrupt number is left for one more message; the machine has too many interrupt vectors")]
    Exhausted,
    /// The event could not be made.
    #[error("cannot create an event for an interrupt")]
    Event(#[source] io::Error),
    /// KVM refused.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// A message-signalled interrupt as the guest programmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Which GSIs are taken, and what the message GSIs mean.
#[derive(Debug, Default)]
struct Table {
    /// Taken message GSIs; `None`: taken, but no message routed.
    messages: BTreeMap<u32, Option<MsiMessage>>,
    /// GSIs given back, to be handed out first.
    free: BTreeSet<u32>,
    /// How many were ever handed out, without those handed out again.
    used: u32,
}

impl Table {
    fn allocate(&mut self) -> Option<u32> {
        let gsi = match self.free.pop_first() {
            Some(gsi) => gsi,
            None => {
                let fresh = IOAPIC_PINS + self.used;
                if fresh >= GSI_LIMIT {
                    return None;
                }
                self.used += 1;
                fresh
            }
        };
        self.messages.insert(gsi, None);
        Some(gsi)
    }

    /// Gives the GSI back. True if KVM's table had it.
    fn release(&mut self, gsi: u32) -> bool {
        self.free.insert(gsi);
        self.messages.remove(&gsi).flatten().is_some()
    }

    /// The table as KVM takes it: wired pins as they are after power-on, and all routed messages.
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pic = |gsi: u32| match gsi / PIC_PINS {
            0 => Some(chip_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            1 => Some(chip_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS)),
            _ => None,
        };
        let pins = (0..IOAPIC_PINS).flat_map(|gsi| [Some(chip_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)), pic(gsi)]);
        let messages = self
            .messages
            .iter()
            .map(|(&gsi, message)| message.map(|message| message_entry(gsi, message)));
        pins.chain(messages).flatten().take(KVM_MAX_IRQ_ROUTES).collect()
    }
}

fn chip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let [l0, l1, l2, l3, h0, h1, h2, h3] = message.address.to_le_bytes();
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([l0, l1, l2, l3]),
        address_hi: u32::from_le_bytes([h0, h1, h2, h3]),
        data: message.data,
        ..Default::default()
    };
    entry
}

/// The interrupt routes of one machine. Get it from [`crate::Vm::irq_routing`].
#[derive(Debug)]
pub struct IrqRouting {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

impl IrqRouting {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            table: Mutex::default(),
        }
    }

    /// An event that raises one edge on IOAPIC pin `pin` whenever it is written.
    pub fn line(self: &Arc<Self>, pin: u32) -> Result<IrqLineFd, RouteError> {
        if pin >= IOAPIC_PINS {
            return Err(RouteError::NoSuchPin { pin });
        }
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(RouteError::Event)?;
        self.connect(&event, pin)?;
        Ok(IrqLineFd {
            routing: Arc::clone(self),
            pin,
            event: Arc::new(event),
        })
    }

    /// A message interrupt that means nothing yet.
    pub fn message(self: &Arc<Self>) -> Result<MsiIrq, RouteError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(RouteError::Event)?;
        let gsi = self.lock().allocate().ok_or(RouteError::Exhausted)?;
        let irq = MsiIrq {
            routing: Arc::clone(self),
            gsi,
            event: Arc::new(event),
        };
        self.connect(&irq.event, gsi)?;
        Ok(irq)
    }

    fn connect(&self, event: &EventFd, gsi: u32) -> Result<(), CallError> {
        self.vm
            .register_irqfd(event, gsi)
            .map_err(CallError::on(format!("connect an event to interrupt {gsi}")))
    }

    fn disconnect(&self, event: &EventFd, gsi: u32) {
        if let Err(errno) = self.vm.unregister_irqfd(event, gsi) {
            tracing::debug!(gsi, %errno, "event of an interrupt not taken back");
        }
    }

    fn set(&self, gsi: u32, message: Option<MsiMessage>) -> Result<(), CallError> {
        let mut table = self.lock();
        let before = table.messages.insert(gsi, message);
        if before.flatten() == message {
            return Ok(());
        }
        let done = self.upload(&table);
        if done.is_err() {
            // KVM still has the old table.
            table.messages.insert(gsi, before.flatten());
        }
        done
    }

    fn release(&self, gsi: u32) {
        let mut table = self.lock();
        if table.release(gsi)
            && let Err(error) = self.upload(&table)
        {
            tracing::debug!(gsi, %error, "route of a message not taken back");
        }
    }

    fn upload(&self, table: &Table) -> Result<(), CallError> {
        let entries = table.entries();
        let what = || format!("set {} interrupt routes", entries.len());
        let routes = KvmIrqRouting::from_entries(&entries).map_err(|_| CallError::unfit(what()))?;
        self.vm.set_gsi_routing(&routes).map_err(CallError::on(what()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wired interrupt: one edge on an IOAPIC pin per write of its event. Dropping it disconnects the pin.
#[derive(Debug)]
pub struct IrqLineFd {
    routing: Arc<IrqRouting>,
    pin: u32,
    event: Arc<EventFd>,
}

impl IrqLineFd {
    /// Delivers one edge. Fails only if the counter is full, which means that edges are pending anyway.
    pub fn trigger(&self) {
        if let Err(error) = self.event.write(1) {
            tracing::trace!(pin = self.pin, %error, "edge merged with pending ones");
        }
    }

    /// The event itself, for whoever triggers from another process or by io_uring.
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }
}

impl Drop for IrqLineFd {
    fn drop(&mut self) {
        self.routing.disconnect(&self.event, self.pin);
    }
}

/// One message interrupt: a GSI, the event that raises it, and the message the guest programmed. Dropping it gives the GSI
/// back.
#[derive(Debug)]
pub struct MsiIrq {
    routing: Arc<IrqRouting>,
    gsi: u32,
    event: Arc<EventFd>,
}

impl MsiIrq {
    /// From now on the interrupt means `message`; with `None`, nothing: it is lost when raised. The same message again costs
    /// nothing; a new one makes the kernel wait for all vCPUs to see it (tens of microseconds).
    pub fn route(&self, message: Option<MsiMessage>) -> Result<(), CallError> {
        self.routing.set(self.gsi, message)
    }

    /// Raises it. Callable from any thread, does not block.
    pub fn trigger(&self) {
        if let Err(error) = self.event.write(1) {
            tracing::trace!(gsi = self.gsi, %error, "message merged with pending ones");
        }
    }

    /// The event itself, for whoever raises from another process or by io_uring.
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Its number at KVM.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

impl Drop for MsiIrq {
    fn drop(&mut self) {
        self.routing.disconnect(&self.event, self.gsi);
        self.routing.release(self.gsi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wired_pins_stay_and_messages_come_on_top() {
        let mut table = Table::default();
        let wired = table.entries().len();
        assert_eq!(wired, 24 + 16);
        let (first, second) = (table.allocate().unwrap(), table.allocate().unwrap());
        assert_eq!((first, second), (24, 25));
        assert_eq!(
            table.entries().len(),
            wired,
            "a message without meaning is not in the table"
        );
        let message = MsiMessage {
            address: 0x1_fee0_1000,
            data: 0x41,
        };
        table.messages.insert(second, Some(message));
        let entries = table.entries();
        let last = entries.last().unwrap();
        assert_eq!(
            (entries.len(), last.gsi, last.type_),
            (wired + 1, 25, KVM_IRQ_ROUTING_MSI)
        );
        assert!(!table.release(first));
        assert_eq!(table.allocate(), Some(24), "a GSI given back is handed out again");
    }

    #[test]
    fn interrupt_numbers_run_out_with_a_none() {
        let mut table = Table::default();
        let count = std::iter::from_fn(|| table.allocate()).count();
        assert_eq!(count, (GSI_LIMIT - IOAPIC_PINS) as usize);
    }
}
