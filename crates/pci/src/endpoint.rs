//! What a PCI function is before it sits in a slot: identity, BARs, capabilities.

use std::sync::Arc;

use device::BusHandler;

use crate::msix::Msix;
use crate::registers::{COMMAND_WRITABLE, CONFIG_SIZE, Registers, STATUS_CAPABILITIES, offset};

/// Number of 64-bit BARs of a type-0 function. Each takes two of the six BAR registers: indices 0, 2 and 4.
pub(crate) const BARS: usize = 3;
/// BAR bits 2:1 = 10b: anywhere in the 64-bit address space; bit 3: prefetchable (PCI 3.0 §6.2.5.1).
const BAR_MEMORY_64_PREFETCHABLE: u64 = 0b1100;
/// BAR bits that are not address.
pub(crate) const BAR_FLAGS: u64 = 0xf;
/// Smallest BAR handed out, bytes: a page, so that no two functions share one.
const BAR_SIZE_MIN: u64 = 0x1000;

/// Header fields that name a function (PCI 3.0 §6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Answers for a part of a capability instead of its register bytes.
///
/// `body` are the capability's register bytes at that moment, its ID and next pointer not included. No lock of the function is held.
pub trait CapabilityWindow: Send + Sync {
    /// Fills `data` with what the guest reads, `offset` bytes into the window.
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]);

    /// Takes what the guest wrote, `offset` bytes into the window.
    fn write(&self, body: &[u8], offset: usize, data: &[u8]);
}

/// One entry of the capability list.
pub struct Capability {
    id: u8,
    body: Vec<u8>,
    writable: Vec<u8>,
    window: Option<(usize, Arc<dyn CapabilityWindow>)>,
}

impl Capability {
    /// A capability of register bytes `body`, which follow its ID and next pointer. A guest may not change them.
    pub fn new(id: u8, body: Vec<u8>) -> Self {
        let writable = vec![0; body.len()];
        Self {
            id,
            body,
            writable,
            window: None,
        }
    }

    /// Lets a guest change the bits of `mask`, which starts `offset` bytes into the body.
    #[must_use]
    pub fn writable(mut self, offset: usize, mask: &[u8]) -> Self {
        for (bits, &more) in self.writable.iter_mut().skip(offset).zip(mask) {
            *bits |= more;
        }
        self
    }

    /// Has `window` answer for the body from `offset` to its end.
    #[must_use]
    pub fn window(mut self, offset: usize, window: Arc<dyn CapabilityWindow>) -> Self {
        self.window = Some((offset, window));
        self
    }
}

/// Why an endpoint does not fit into configuration space. Always a mistake of the device model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// A BAR index that is not 0, 2 or 4, or is used twice.
    #[error("bar {index} is not free: a function has 64-bit bars 0, 2 and 4")]
    BarIndex {
        /// The refused index.
        index: u8,
    },
    /// A size that BARs can not have.
    #[error("bar {index} of {size:#x} bytes must be a power of two from {BAR_SIZE_MIN:#x}")]
    BarSize {
        /// Index of the BAR.
        index: u8,
        /// The refused size, bytes.
        size: u64,
    },
    /// The capability list is longer than configuration space.
    #[error("capabilities end at {end:#x}, past the {CONFIG_SIZE:#x} bytes of config space")]
    CapabilitiesTooLong {
        /// Where the list would end.
        end: usize,
    },
}

#[derive(Clone)]
pub(crate) struct Bar {
    pub(crate) size: u64,
    pub(crate) handler: Arc<dyn BusHandler>,
}

impl Bar {
    /// Where BAR number `slot` (0–2) has its registers.
    pub(crate) const fn offset(slot: usize) -> usize {
        offset::BARS + 8 * slot
    }
}

/// A capability window as it lies in configuration space.
pub(crate) struct Window {
    pub(crate) body: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) handler: Arc<dyn CapabilityWindow>,
}

/// A PCI function on the bench: build it, then [`crate::Root::plug`] it.
pub struct Endpoint {
    pub(crate) registers: Registers,
    pub(crate) bars: [Option<Bar>; BARS],
    pub(crate) windows: Vec<Window>,
    /// MSI-X and the offset of its message control register.
    pub(crate) msix: Option<(usize, Arc<Msix>)>,
    end: usize,
    last_next: usize,
}

impl Endpoint {
    /// A function with a type-0 header and nothing else.
    pub fn new(identity: &Identity) -> Self {
        let mut registers = Registers::new();
        registers.put(offset::VENDOR, &identity.vendor.to_le_bytes());
        registers.put(offset::DEVICE, &identity.device.to_le_bytes());
        registers.put(offset::REVISION, &[identity.revision]);
        let [base, sub, interface] = identity.class;
        registers.put(offset::CLASS, &[interface, sub, base]);
        registers.put(offset::SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        registers.put(offset::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        registers.allow(offset::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        registers.allow(offset::CACHE_LINE, &[0xff]);
        registers.allow(offset::INTERRUPT_LINE, &[0xff]);
        Self {
            registers,
            bars: [const { None }; BARS],
            windows: Vec::new(),
            msix: None,
            end: offset::FIRST_CAPABILITY,
            last_next: offset::CAPABILITIES,
        }
    }

    /// Gives BAR `index` (0, 2 or 4) `size` bytes of 64-bit memory behind `handler`.
    pub fn bar(mut self, index: u8, size: u64, handler: Arc<dyn BusHandler>) -> Result<Self, EndpointError> {
        if !size.is_power_of_two() || size < BAR_SIZE_MIN {
            return Err(EndpointError::BarSize { index, size });
        }
        let slot = usize::from(index / 2);
        match self.bars.get_mut(slot) {
            Some(bar @ None) if index.is_multiple_of(2) => *bar = Some(Bar { size, handler }),
            _ => return Err(EndpointError::BarIndex { index }),
        }
        let register = Bar::offset(slot);
        self.registers.put(register, &BAR_MEMORY_64_PREFETCHABLE.to_le_bytes());
        self.registers.allow(register, &(!(size - 1)).to_le_bytes());
        Ok(self)
    }

    /// Appends to the capability list.
    pub fn capability(mut self, capability: Capability) -> Result<Self, EndpointError> {
        let header = self.end;
        let body = header + 2;
        let end = (body + capability.body.len()).next_multiple_of(4);
        if end > CONFIG_SIZE {
            return Err(EndpointError::CapabilitiesTooLong { end });
        }
        // Cannot fail: `header` was just found to be below 256.
        let pointer = u8::try_from(header).unwrap_or_default();
        self.registers.put(self.last_next, &[pointer]);
        self.registers.put(header, &[capability.id, 0]);
        self.registers.put(body, &capability.body);
        self.registers.allow(body, &capability.writable);
        self.registers.put(offset::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        if let Some((inside, handler)) = capability.window {
            self.windows.push(Window {
                body,
                start: body + inside,
                end: body + capability.body.len(),
                handler,
            });
        }
        self.last_next = header + 1;
        self.end = end;
        Ok(self)
    }

    /// Appends the MSI-X capability. The caller has put [`Msix::table`] and [`Msix::pending`] into BAR `bar` at these offsets,
    /// which are multiples of 8.
    pub fn msix(mut self, msix: Arc<Msix>, bar: u8, table: u32, pending: u32) -> Result<Self, EndpointError> {
        let control = self.end + 2;
        let mut body = Vec::with_capacity(10);
        body.extend(msix.size_field().to_le_bytes());
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pending | u32::from(bar)).to_le_bytes());
        self.msix = Some((control, msix));
        self.capability(Capability::new(Msix::CAPABILITY_ID, body).writable(0, &Msix::CONTROL_WRITABLE.to_le_bytes()))
    }
}
