//! A virtio disk (virtio 1.2 §5.2).

use core::ptr::addr_of_mut;

use crate::memory::{read, write};
use crate::virtio::{Device, Piece, VENDOR};
use crate::{cpu, interrupts, pci};

/// Device number of a modern virtio-blk function.
const DEVICE: u16 = 0x1042;
/// Interrupt of its queue.
pub const INTERRUPT: u8 = 0x40;
/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of the buffer that requests use.
pub const BUFFER: u64 = 8192;

/// Features.
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// What a request asks.
#[derive(Clone, Copy)]
pub enum Request {
    /// Fill the buffer's first bytes from this sector on.
    Read(u64, u32),
    /// Write the buffer's first bytes from this sector on.
    Write(u64, u32),
    /// Make everything written durable.
    Flush,
    /// Fill the buffer's first 20 bytes with the serial number.
    GetId,
    /// These sectors are not needed.
    Discard(u64, u32),
    /// These sectors shall read as zeroes.
    WriteZeroes(u64, u32),
}

#[repr(C, align(4096))]
struct Space([u8; 4096 + BUFFER as usize]);

static mut SPACE: Space = Space([0; 4096 + BUFFER as usize]);

/// Header, range and status; the data follow on the next page.
fn space() -> u64 {
    addr_of_mut!(SPACE) as u64
}

/// Address of byte `offset` of the buffer.
pub fn buffer(offset: u64) -> u64 {
    space() + 4096 + offset
}

/// A started disk.
pub struct Disk {
    /// The device below.
    pub device: Device,
}

impl Disk {
    /// Starts the first disk of the machine.
    pub fn start(ecam: u64) -> Result<Self, &'static str> {
        let function = pci::find(ecam, VENDOR, DEVICE).ok_or("no virtio disk")?;
        let device = Device::start(function, FLUSH | DISCARD | WRITE_ZEROES)?;
        device.msix.route(0, INTERRUPT);
        Ok(Self { device })
    }

    /// Length, sectors.
    pub fn sectors(&self) -> u64 {
        u64::from(read::<u32>(self.device.config)) | u64::from(read::<u32>(self.device.config + 4)) << 32
    }

    /// It knows [`Request::Flush`].
    pub fn flushes(&self) -> bool {
        self.device.features & FLUSH != 0
    }

    /// It knows [`Request::Discard`].
    pub fn discards(&self) -> bool {
        self.device.features & DISCARD != 0
    }

    /// It knows [`Request::WriteZeroes`].
    pub fn writes_zeroes(&self) -> bool {
        self.device.features & WRITE_ZEROES != 0
    }

    /// Hands `request` to the device.
    pub fn submit(&mut self, request: Request) {
        let (kind, sector, data, device_writes): (u32, u64, u32, bool) = match request {
            Request::Read(sector, bytes) => (0, sector, bytes, true),
            Request::Write(sector, bytes) => (1, sector, bytes, false),
            Request::Flush => (4, 0, 0, false),
            Request::GetId => (8, 0, 20, true),
            Request::Discard(..) => (11, 0, 0, false),
            Request::WriteZeroes(..) => (13, 0, 0, false),
        };
        let (header, range, status) = (space(), space() + 16, space() + 64);
        write(header, kind);
        write(header + 4, 0_u32);
        write(header + 8, sector);
        write(status, 0xff_u8);
        let piece = |address, bytes, device_writes| Piece {
            address,
            bytes,
            device_writes,
        };
        let (first, last) = (piece(header, 16, false), piece(status, 1, true));
        if let Request::Discard(start, count) | Request::WriteZeroes(start, count) = request {
            write(range, start);
            write(range + 8, count);
            write(range + 12, 0_u32);
            self.device.submit(&[first, piece(range, 16, false), last]);
        } else if data > 0 {
            self.device
                .submit(&[first, piece(buffer(0), data, device_writes), last]);
        } else {
            self.device.submit(&[first, last]);
        }
    }

    /// Submits, waits for the interrupt and returns what the device said.
    pub fn run(&mut self, request: Request) -> Result<(), &'static str> {
        let before = interrupts::count(INTERRUPT);
        self.submit(request);
        cpu::enable_interrupts();
        let came = cpu::wait_until(|| interrupts::count(INTERRUPT) != before && self.device.is_done());
        cpu::disable_interrupts();
        if !came {
            return Err(if self.device.is_done() {
                "request done, no interrupt"
            } else {
                "request never done"
            });
        }
        self.status()
    }

    /// What the device said to the last request.
    pub fn status(&self) -> Result<(), &'static str> {
        match read::<u8>(space() + 64) {
            0 => Ok(()),
            1 => Err("device reports an I/O error"),
            2 => Err("device does not know the request"),
            _ => Err("device left the status alone"),
        }
    }
}

/// Fills `bytes` of the buffer with a pattern that depends on `seed`.
pub fn fill(bytes: u64, seed: u64) {
    for offset in (0..bytes).step_by(8) {
        write(buffer(offset), pattern(offset, seed));
    }
}

/// The buffer holds that pattern.
pub fn matches(bytes: u64, seed: u64) -> bool {
    (0..bytes)
        .step_by(8)
        .all(|offset| read::<u64>(buffer(offset)) == pattern(offset, seed))
}

/// The buffer holds zeroes.
pub fn is_zero(bytes: u64) -> bool {
    (0..bytes).step_by(8).all(|offset| read::<u64>(buffer(offset)) == 0)
}

fn pattern(offset: u64, seed: u64) -> u64 {
    (offset + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93)
}
