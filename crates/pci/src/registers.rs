//! Configuration registers of one function: bytes, and which bits of them a guest may change.

/// Conventional configuration space, bytes. What lies above it in ECAM reads as zero: no extended capabilities.
pub(crate) const CONFIG_SIZE: usize = 256;

/// Offsets of the type-0 header (PCI 3.0 §6.1).
pub(crate) mod offset {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const CLASS: usize = 0x09;
    pub(crate) const CACHE_LINE: usize = 0x0c;
    pub(crate) const BARS: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const FIRST_CAPABILITY: usize = 0x40;
}

/// COMMAND: answer to memory accesses.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND bits a guest may set: memory space, bus master, SERR, interrupt disable. There is no I/O space.
pub(crate) const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 8 | 1 << 10;
/// STATUS: a capability list exists.
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Register bytes with a write mask. Total functions: an access beyond the end reads zero and writes nothing.
#[derive(Clone)]
pub(crate) struct Registers {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
        }
    }

    /// Sets register bytes for good, whatever the mask says.
    pub(crate) fn put(&mut self, offset: usize, value: &[u8]) {
        for (byte, &new) in self.bytes.iter_mut().skip(offset).zip(value) {
            *byte = new;
        }
    }

    /// Says which bits a guest may change.
    pub(crate) fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (byte, &new) in self.writable.iter_mut().skip(offset).zip(mask) {
            *byte = new;
        }
    }

    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (out, &byte) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *out = byte;
        }
    }

    /// A guest's write: only writable bits change.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let registers = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, &mask), &new) in registers.zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    pub(crate) fn u16(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(crate) fn u64(&self, offset: usize) -> u64 {
        let mut data = [0; 8];
        self.read(offset, &mut data);
        u64::from_le_bytes(data)
    }
}
