//! A virtio 1.2 device on PCI with one split queue, used for one request at a time.

use core::ptr::addr_of_mut;
use core::sync::atomic::{Ordering, fence};

use crate::cpu;
use crate::memory::{read, write};
use crate::pci::{Function, Msix};

/// Vendor number of all virtio functions.
pub const VENDOR: u16 = 0x1af4;
/// Vendor-specific capability.
const CAPABILITY: u8 = 0x09;
/// The queue's length here.
const QUEUE: u16 = 8;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// No MSI-X vector.
const NO_VECTOR: u16 = 0xffff;

/// Device status bits.
const ACKNOWLEDGE_AND_DRIVER: u8 = 3;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Descriptor flags.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

#[repr(C, align(4096))]
struct Rings([u8; 4096]);

static mut RINGS: Rings = Rings([0; 4096]);
/// Where the rings are in [`RINGS`].
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

/// A running device.
pub struct Device {
    common: u64,
    /// Its own configuration.
    pub config: u64,
    bell: u64,
    /// Its interrupts.
    pub msix: Msix,
    /// Features that both sides know.
    pub features: u64,
    submitted: u16,
}

/// One piece of a request.
pub struct Piece {
    /// Its physical address.
    pub address: u64,
    /// Its length, bytes.
    pub bytes: u32,
    /// The device writes it.
    pub device_writes: bool,
}

struct Places {
    common: u64,
    notify: u64,
    notify_step: u64,
    config: u64,
}

fn places(function: Function) -> Result<Places, &'static str> {
    let mut places = Places {
        common: 0,
        notify: 0,
        notify_step: 0,
        config: 0,
    };
    for at in function.capabilities(CAPABILITY) {
        let kind: u8 = function.config(at + 3);
        if !(1..=4).contains(&kind) {
            continue;
        }
        let bar = function.bar(function.config(at + 4)).ok_or("a BAR has no address")?;
        let address = bar + u64::from(function.config::<u32>(at + 8));
        match kind {
            1 => places.common = address,
            2 => (places.notify, places.notify_step) = (address, u64::from(function.config::<u32>(at + 16))),
            4 => places.config = address,
            _ => {}
        }
    }
    if places.common == 0 || places.notify == 0 {
        return Err("a virtio capability is missing");
    }
    Ok(places)
}

/// Base of the rings.
fn rings() -> u64 {
    addr_of_mut!(RINGS) as u64
}

impl Device {
    /// Resets the device, agrees on `wanted` features as far as offered, and starts queue 0 with MSI-X vector 0.
    pub fn start(function: Function, wanted: u64) -> Result<Self, &'static str> {
        function.enable();
        let Places {
            common,
            notify,
            notify_step,
            config,
        } = places(function)?;
        let msix = function.msix().ok_or("no MSI-X")?;
        write(common + 0x14, 0_u8);
        if !cpu::wait_until(|| read::<u8>(common + 0x14) == 0) {
            return Err("device does not reset");
        }
        write(common + 0x14, ACKNOWLEDGE_AND_DRIVER);
        let mut offered = 0;
        for half in 0..2_u32 {
            write(common, half);
            offered |= u64::from(read::<u32>(common + 4)) << (32 * half);
        }
        if offered & VERSION_1 == 0 {
            return Err("device does not offer VIRTIO_F_VERSION_1");
        }
        let features = offered & (wanted | VERSION_1);
        for half in 0..2_u32 {
            write(common + 8, half);
            write(common + 12, (features >> (32 * half)) as u32);
        }
        write(common + 0x14, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK);
        if read::<u8>(common + 0x14) & FEATURES_OK == 0 {
            return Err("device refuses features it offered");
        }
        write(common + 0x10, NO_VECTOR);
        write(common + 0x16, 0_u16);
        if read::<u16>(common + 0x18) < QUEUE {
            return Err("queue 0 is too short");
        }
        write(common + 0x18, QUEUE);
        write(common + 0x1a, 0_u16);
        if read::<u16>(common + 0x1a) != 0 {
            return Err("device refuses MSI-X vector 0");
        }
        for (register, address) in [(0x20, rings()), (0x28, rings() + AVAILABLE), (0x30, rings() + USED)] {
            write(common + register, address as u32);
            write(common + register + 4, (address >> 32) as u32);
        }
        for offset in 0..512 {
            write(rings() + offset * 8, 0_u64);
        }
        let bell = notify + u64::from(read::<u16>(common + 0x1e)) * notify_step;
        write(common + 0x1c, 1_u16);
        write(common + 0x14, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK | DRIVER_OK);
        Ok(Self {
            common,
            config,
            bell,
            msix,
            features,
            submitted: 0,
        })
    }

    /// Hands one request of up to [`QUEUE`] pieces to the device.
    pub fn submit(&mut self, pieces: &[Piece]) {
        for (index, piece) in (0_u16..).zip(pieces) {
            let descriptor = rings() + u64::from(index) * 16;
            let last = usize::from(index) + 1 == pieces.len();
            let flags = if last { 0 } else { NEXT } | if piece.device_writes { DEVICE_WRITES } else { 0 };
            write(descriptor, piece.address);
            write(descriptor + 8, piece.bytes);
            write(descriptor + 12, flags);
            write(descriptor + 14, index + 1);
        }
        write(rings() + AVAILABLE + 4 + u64::from(self.submitted % QUEUE) * 2, 0_u16);
        self.submitted = self.submitted.wrapping_add(1);
        fence(Ordering::SeqCst);
        write(rings() + AVAILABLE + 2, self.submitted);
        fence(Ordering::SeqCst);
        write(self.bell, 0_u16);
    }

    /// The device has used all that was handed to it.
    pub fn is_done(&self) -> bool {
        read::<u16>(rings() + USED + 2) == self.submitted
    }

    /// Stops the device.
    pub fn stop(self) {
        write(self.common + 0x14, 0_u8);
    }
}
