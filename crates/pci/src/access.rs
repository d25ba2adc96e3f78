//! The two ways to configuration space: memory-mapped (ECAM) and the legacy port pair.

use std::sync::Arc;

use device::BusHandler;

use crate::registers::CONFIG_SIZE;
use crate::root::Root;

/// Bytes of ECAM that one bus takes: 32 devices of 8 functions of 4 KiB (PCI Express 5.0 §7.2.2).
pub const ECAM_BUS_SIZE: u64 = 1 << 20;
/// Bytes of a function in ECAM.
const ECAM_FUNCTION_SIZE: u64 = 1 << 12;
/// Functions a device may have.
const FUNCTIONS: u64 = 8;

/// Configuration space in memory. Map it at the base that MCFG names, [`ECAM_BUS_SIZE`] bytes for its one bus.
pub struct Ecam(Arc<Root>);

impl Ecam {
    /// The ECAM window onto `root`.
    pub const fn new(root: Arc<Root>) -> Self {
        Self(root)
    }

    /// Slot and register, if function 0 of a slot on bus 0 is meant and the access does not leave it.
    fn decode(offset: u64, length: usize) -> Option<(u8, usize)> {
        let register = offset % ECAM_FUNCTION_SIZE;
        let function = offset / ECAM_FUNCTION_SIZE;
        if !function.is_multiple_of(FUNCTIONS) || register + u64::try_from(length).ok()? > ECAM_FUNCTION_SIZE {
            return None;
        }
        Some((
            u8::try_from(function / FUNCTIONS).ok()?,
            usize::try_from(register).ok()?,
        ))
    }
}

impl BusHandler for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::decode(offset, data.len()) {
            Some((slot, register)) => self.0.read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = Self::decode(offset, data.len()) {
            self.0.write(slot, register, data);
        }
    }
}

/// First of the legacy ports (PCI 3.0 §3.2.2.3.2).
pub const CONFIG_PORTS_BASE: u64 = 0xcf8;
/// Number of legacy ports: address and data, four each.
pub const CONFIG_PORTS_SIZE: u64 = 8;
/// Address port: the data port leads somewhere.
const ADDRESS_ENABLE: u32 = 1 << 31;

/// Configuration space through ports 0xcf8–0xcff. Map it at [`CONFIG_PORTS_BASE`].
pub struct ConfigPorts(Arc<Root>);

impl ConfigPorts {
    /// The port pair onto `root`.
    pub const fn new(root: Arc<Root>) -> Self {
        Self(root)
    }

    /// Slot and register that `length` bytes at `offset` of the data port mean now.
    fn decode(&self, offset: u64, length: usize) -> Option<(u8, usize)> {
        let lane = usize::try_from(offset.checked_sub(4)?).ok()?;
        let address = self.0.ports_address();
        let [register, device_function, bus, _] = address.to_le_bytes();
        if address & ADDRESS_ENABLE == 0 || bus != 0 || !device_function.is_multiple_of(8) || lane + length > 4 {
            return None;
        }
        let register = usize::from(register & 0xfc) + lane;
        (register < CONFIG_SIZE).then_some((device_function / 8, register))
    }
}

impl BusHandler for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(out)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *out = self.0.ports_address().to_le_bytes();
            return;
        }
        match self.decode(offset, data.len()) {
            Some((slot, register)) => self.0.read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(&address)) = (offset, <&[u8; 4]>::try_from(data)) {
            self.0.set_ports_address(u32::from_le_bytes(address));
        } else if let Some((slot, register)) = self.decode(offset, data.len()) {
            self.0.write(slot, register, data);
        }
    }
}
