//! The driver's side, for tests: a machine with one device in it, and a driver that reaches it as a guest would.
//!
//! Everything goes through configuration space, the BAR and the rings, so a device tested by it is tested with its transport.
//! Panics where a real driver would give up.

mod machine;
mod ring;

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::conformance::{load, save};
use device::{BusHandler, Device};
use guestmem::{Bytes, GuestAddress, GuestMemory, MemoryConfig};
use pci::{Ecam, Root};

pub use machine::MockRoutes;
pub use ring::{Buf, MockRing, Used};

use crate::contract::VirtioDevice;
use crate::feature;
use crate::transport::VirtioPci;
use machine::Space;

/// Slot the device sits in.
const SLOT: u64 = 3;
/// Where BARs may lie.
const BARS: std::ops::Range<u64> = 0xc000_0000..0xc010_0000;
/// Where the driver's own allocations begin; below it are the rings.
const ALLOCATIONS: u64 = 0x10_0000;
/// Guest RAM, bytes.
const RAM: u64 = 64 << 20;
/// How long a device may take for anything. Generous: test machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(20);

/// Status bits as a driver writes them (virtio 1.2 §2.1).
pub mod status {
    /// ACKNOWLEDGE.
    pub const ACKNOWLEDGE: u8 = 1;
    /// DRIVER.
    pub const DRIVER: u8 = 2;
    /// DRIVER_OK.
    pub const DRIVER_OK: u8 = 4;
    /// FEATURES_OK.
    pub const FEATURES_OK: u8 = 8;
    /// DEVICE_NEEDS_RESET.
    pub const NEEDS_RESET: u8 = 64;
}

fn ram() -> GuestMemory {
    let memory = GuestMemory::new(MemoryConfig {
        size_bytes: RAM,
        hugepages: None,
        prefault: false,
    });
    memory.unwrap()
}

/// A guest with one virtio device.
pub struct MockDriver {
    transport: Arc<VirtioPci>,
    memory: GuestMemory,
    space: Arc<Space>,
    routes: Arc<MockRoutes>,
    root: Arc<Root>,
    ecam: Ecam,
    bar: u64,
    /// Offsets in the BAR by structure type 1–4.
    structures: [u64; 5],
    rings: Vec<MockRing>,
    next_free: u64,
}

impl MockDriver {
    /// Plugs `device` in and finds it: BAR mapped, MSI-X on, status 0.
    pub fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let mut driver = Self::plug(device, ram());
        driver.probe();
        driver
    }

    fn plug(device: Arc<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let space = Arc::new(Space::default());
        let routes = Arc::new(MockRoutes::default());
        let root = Root::new(Arc::clone(&space) as _, Vec::from_iter([BARS]));
        let (transport, endpoint) = VirtioPci::new(device, memory.clone(), Arc::clone(&routes) as _).unwrap();
        root.plug(u8::try_from(SLOT).unwrap(), endpoint).unwrap();
        Self {
            transport,
            memory,
            space,
            routes,
            ecam: Ecam::new(Arc::clone(&root)),
            root,
            bar: BARS.start,
            structures: [0; 5],
            rings: Vec::new(),
            next_free: ALLOCATIONS,
        }
    }

    /// A transport with `device` behind it, in no slot, on guest memory of its own, as large and empty.
    pub fn twin(&self, device: Arc<dyn VirtioDevice>) -> Arc<VirtioPci> {
        let routes = Arc::new(MockRoutes::default());
        VirtioPci::new(device, ram(), routes).unwrap().0
    }

    /// Moves to another machine with `device` in it, as a saved and restored one: driver, rings and memory go on, bus and
    /// device are new and get what was saved.
    pub fn move_to(&mut self, device: Arc<dyn VirtioDevice>) {
        self.transport.pause().wait();
        self.root.pause().wait();
        let new = Self::plug(device, self.memory.clone());
        load(&*new.root, &save(&*self.root));
        load(&*new.transport, &save(&*self.transport));
        self.transport.reset();
        new.root.resume();
        new.transport.resume();
        let Self {
            transport,
            space,
            routes,
            root,
            ecam,
            ..
        } = new;
        *self = Self {
            transport,
            space,
            routes,
            root,
            ecam,
            memory: self.memory.clone(),
            bar: self.bar,
            structures: self.structures,
            rings: std::mem::take(&mut self.rings),
            next_free: self.next_free,
        };
    }

    fn probe(&mut self) {
        self.config_space_write(0x04, &6_u16.to_le_bytes());
        let mut at = self.config_space_read(0x34, 1);
        while at != 0 {
            let header = self.config_space_read(at, 4);
            match header & 0xff {
                0x09 => {
                    let kind = usize::try_from(header >> 24).unwrap();
                    let offset = self.config_space_read(at + 8, 4);
                    if let Some(place) = self.structures.get_mut(kind) {
                        *place = offset;
                    }
                }
                0x11 => self.enable_msix(at),
                other => panic!("unknown capability {other:#x}"),
            }
            at = header >> 8 & 0xff;
        }
    }

    /// Vector 0 is configuration, vector `n` + 1 queue `n`; the message of each is its number.
    fn enable_msix(&self, at: u64) {
        let vectors = (self.config_space_read(at + 2, 2) & 0x7ff) + 1;
        let table = self.config_space_read(at + 4, 4) & !7;
        for vector in 0..vectors {
            let message = [0xfee0_0000, 0, u32::try_from(vector).unwrap(), 0];
            for (word, value) in (0..).zip(message) {
                self.bar_write(table + vector * 16 + word * 4, &u32::to_le_bytes(value));
            }
        }
        self.config_space_write(at + 2, &0x8000_u16.to_le_bytes());
    }

    /// Reads 1–8 bytes of the function's configuration space.
    pub fn config_space_read(&self, offset: u64, length: usize) -> u64 {
        let mut data = [0; 8];
        self.ecam.read(SLOT << 15 | offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    /// Writes the function's configuration space.
    pub fn config_space_write(&self, offset: u64, data: &[u8]) {
        self.ecam.write(SLOT << 15 | offset, data);
    }

    /// Reads the BAR.
    pub fn bar_read(&self, offset: u64, data: &mut [u8]) {
        assert!(self.space.0.read(self.bar + offset, data), "the bar is not mapped");
    }

    /// Writes the BAR.
    pub fn bar_write(&self, offset: u64, data: &[u8]) {
        assert!(self.space.0.write(self.bar + offset, data), "the bar is not mapped");
    }

    /// Reads a field of the common configuration.
    pub fn common(&self, offset: u64, length: usize) -> u64 {
        let mut data = [0; 8];
        self.bar_read(self.structures[1] + offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    /// Writes a field of the common configuration.
    pub fn set_common(&self, offset: u64, data: &[u8]) {
        self.bar_write(self.structures[1] + offset, data);
    }

    /// The status byte.
    pub fn status(&self) -> u8 {
        u8::try_from(self.common(0x14, 1)).unwrap()
    }

    /// Writes the status byte.
    pub fn set_status(&self, status: u8) {
        self.set_common(0x14, &[status]);
    }

    /// The ISR status byte, cleared by this.
    pub fn isr(&self) -> u8 {
        let mut data = [0];
        self.bar_read(self.structures[3], &mut data);
        data[0]
    }

    /// `N` bytes of device configuration space.
    pub fn device_config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bar_read(self.structures[4] + offset, &mut data);
        data
    }

    /// Writes device configuration space.
    pub fn set_device_config(&self, offset: u64, data: &[u8]) {
        self.bar_write(self.structures[4] + offset, data);
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        let word = |select: u32| {
            self.set_common(0x00, &select.to_le_bytes());
            self.common(0x04, 4)
        };
        word(0) | word(1) << 32
    }

    /// Resets, and goes as far as FEATURES_OK. Returns what of `wanted` (and always `VERSION_1`) both sides have.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.reset();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = self.offered() & (wanted | feature::VERSION_1);
        for select in 0..2_u32 {
            self.set_common(0x08, &select.to_le_bytes());
            let half = u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap();
            self.set_common(0x0c, &half.to_le_bytes());
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_eq!(
            self.status() & status::FEATURES_OK,
            status::FEATURES_OK,
            "features refused"
        );
        features
    }

    /// Sets up every queue with `size` entries, or its largest size if that is less.
    pub fn set_up_queues(&mut self, size: u16, event_idx: bool) {
        self.set_common(0x10, &0_u16.to_le_bytes());
        for index in 0..u16::try_from(self.common(0x12, 2)).unwrap() {
            self.set_common(0x16, &index.to_le_bytes());
            let size = size.min(u16::try_from(self.common(0x18, 2)).unwrap());
            let ring = MockRing::new(&self.memory, u64::from(index) * 0x1_0000, size, event_idx);
            self.set_common(0x18, &size.to_le_bytes());
            self.set_common(0x1a, &(index + 1).to_le_bytes());
            for (offset, address) in [(0x20, ring.descriptors), (0x28, ring.available), (0x30, ring.used)] {
                self.set_common(offset, &u32::try_from(address).unwrap().to_le_bytes());
                self.set_common(offset + 4, &0_u32.to_le_bytes());
            }
            self.set_common(0x1c, &1_u16.to_le_bytes());
            self.rings.push(ring);
        }
    }

    /// From anywhere to a running device with `wanted` features and queues of up to 256 entries.
    pub fn start(&mut self, wanted: u64) -> u64 {
        let features = self.negotiate(wanted);
        self.set_up_queues(256, features & feature::EVENT_IDX != 0);
        self.set_status(0xf);
        features
    }

    /// Resets the device and forgets the rings.
    pub fn reset(&mut self) {
        self.set_status(0);
        assert_eq!(self.status(), 0, "reset is over when the status reads 0");
        self.rings.clear();
    }

    /// Guest RAM.
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The device as the machine sees it.
    pub const fn transport(&self) -> &Arc<VirtioPci> {
        &self.transport
    }

    /// Interrupts so far.
    pub const fn routes(&self) -> &Arc<MockRoutes> {
        &self.routes
    }

    /// The rings of `queue`.
    pub fn ring(&mut self, queue: u16) -> &mut MockRing {
        &mut self.rings[usize::from(queue)]
    }

    /// `length` bytes of guest RAM that nobody else uses.
    pub fn allocate(&mut self, length: usize) -> u64 {
        let gpa = self.next_free;
        self.next_free += u64::try_from(length).unwrap().next_multiple_of(16);
        assert!(self.next_free <= RAM, "out of guest memory");
        gpa
    }

    /// [`MockDriver::allocate`], filled with `bytes`.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let gpa = self.allocate(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
        gpa
    }

    /// Bytes of guest RAM.
    pub fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    /// Rings the doorbell of `queue`.
    pub fn kick(&self, queue: u16) {
        let doorbell = self.structures[2] + u64::from(queue) * 4;
        self.bar_write(doorbell, &queue.to_le_bytes());
    }

    /// Makes a chain available and rings. Returns its head.
    pub fn submit(&mut self, queue: u16, bufs: &[Buf]) -> u16 {
        let head = self.ring(queue).add(bufs);
        self.kick(queue);
        head
    }

    /// Next used chain of `queue`; waits for the interrupt that announces it.
    pub fn wait_used(&mut self, queue: u16) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.routes.delivered(queue + 1);
            if let Some(used) = self.ring(queue).take_used() {
                return used;
            }
            let status = self.status();
            assert_eq!(status & status::NEEDS_RESET, 0, "the device gave up");
            assert!(
                self.routes.wait_beyond(queue + 1, seen, deadline),
                "nothing was used in time"
            );
        }
    }

    /// Waits until the device has set NEEDS_RESET.
    pub fn wait_needs_reset(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.status() & status::NEEDS_RESET == 0 {
            assert!(Instant::now() < deadline, "the device did not give up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
