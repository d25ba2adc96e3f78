//! PCI functions on bus 0 through the ECAM: identity, BARs, capabilities, MSI-X.

use crate::memory::{read, write};
use crate::{apic, memory};

const SLOTS: u64 = 32;
const COMMAND: u64 = 4;
const COMMAND_MEMORY_AND_MASTER: u16 = 0b110;
const FIRST_BAR: u64 = 0x10;
const FIRST_CAPABILITY: u64 = 0x34;
const MSIX: u8 = 0x11;

/// A function's configuration space.
#[derive(Clone, Copy)]
pub struct Function(u64);

/// The function with this vendor and device number, the first of them.
pub fn find(ecam: u64, vendor: u16, device: u16) -> Option<Function> {
    (0..SLOTS)
        .map(|slot| Function(ecam + (slot << 15)))
        .find(|function| function.config::<u16>(0) == vendor && function.config::<u16>(2) == device)
}

impl Function {
    /// Reads configuration space.
    pub fn config<T: Copy>(&self, offset: u64) -> T {
        read(self.0 + offset)
    }

    /// Lets the function be addressed and address memory itself.
    pub fn enable(&self) {
        write(
            self.0 + COMMAND,
            self.config::<u16>(COMMAND) | COMMAND_MEMORY_AND_MASTER,
        );
    }

    /// Address of a memory BAR; maps what lies there. `None` if the machine has not placed it.
    pub fn bar(&self, index: u8) -> Option<u64> {
        let at = FIRST_BAR + u64::from(index) * 4;
        let low: u32 = self.config(at);
        let high = if low & 0b110 == 0b100 {
            self.config::<u32>(at + 4)
        } else {
            0
        };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        if address == 0 {
            return None;
        }
        // BARs of these devices are far smaller than 2 MiB and aligned to their size.
        memory::map(address);
        Some(address)
    }

    /// Offsets of the capabilities with this id.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u64> {
        let mut next = u64::from(self.config::<u8>(FIRST_CAPABILITY));
        let all = core::iter::from_fn(move || {
            let at = next & !3;
            (at >= 0x40).then(|| {
                next = u64::from(self.config::<u8>(at + 1));
                at
            })
        });
        all.take(48).filter(move |&at| self.config::<u8>(at) == id)
    }

    /// Its MSI-X capability, switched on with all vectors masked.
    pub fn msix(&self) -> Option<Msix> {
        let capability = self.capabilities(MSIX).next()?;
        let (table, pending): (u32, u32) = (self.config(capability + 4), self.config(capability + 8));
        let place = |register: u32| Some(self.bar((register & 7) as u8)? + u64::from(register & !7));
        let msix = Msix {
            table: place(table)?,
            pending: place(pending)?,
        };
        let control = self.config::<u16>(capability + 2);
        for vector in 0..=control & 0x7ff {
            msix.mask(vector, true);
        }
        write(self.0 + capability + 2, control & 0x3fff | 0x8000);
        Some(msix)
    }
}

/// A function's interrupt messages.
pub struct Msix {
    table: u64,
    pending: u64,
}

impl Msix {
    fn entry(&self, vector: u16) -> u64 {
        self.table + u64::from(vector) * 16
    }

    /// Masks or unmasks a vector.
    pub fn mask(&self, vector: u16, masked: bool) {
        write(self.entry(vector) + 12, u32::from(masked));
    }

    /// Sends a vector to this CPU as `interrupt`, unmasked.
    pub fn route(&self, vector: u16, interrupt: u8) {
        let entry = self.entry(vector);
        write(entry, 0xfee0_0000 | apic::id() << 12);
        write(entry + 4, 0_u32);
        write(entry + 8, u32::from(interrupt));
        self.mask(vector, false);
    }

    /// A vector has an interrupt pending.
    pub fn is_pending(&self, vector: u16) -> bool {
        read::<u32>(self.pending + u64::from(vector / 32) * 4) >> (vector % 32) & 1 != 0
    }
}
