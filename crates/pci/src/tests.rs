//! The whole of it as a guest sees it: through ECAM, the ports, and the BARs.

#![expect(clippy::cast_possible_truncation, reason = "tests cast small constants")]

use std::sync::{Arc, Mutex};

use device::{Bus, BusHandler, Device, MapError, MsiMessage, MsiRoutes};
use proptest::prelude::*;

use crate::{
    BarSpace, Capability, CapabilityWindow, ConfigPorts, Ecam, Endpoint, Identity, Msix, PlugError, Regions, Root,
};

const WINDOW: std::ops::Range<u64> = 0xe000_0000..0xe010_0000;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;
const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;

#[derive(Default)]
struct Space(Bus);

impl BarSpace for Space {
    fn map(&self, base: u64, size: u64, handler: Arc<dyn BusHandler>) -> Result<(), MapError> {
        self.0.map(base, size, handler)
    }
    fn unmap(&self, base: u64, _size: u64, _handler: &Arc<dyn BusHandler>) {
        self.0.unmap(base).unwrap();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Route(u16, Option<u32>),
    Deliver(u16),
}

#[derive(Default)]
struct Routes(Mutex<Vec<Event>>);

impl Routes {
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiRoutes for Routes {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        self.0
            .lock()
            .unwrap()
            .push(Event::Route(vector, message.map(|m| m.data)));
    }
    fn deliver(&self, vector: u16) {
        self.0.lock().unwrap().push(Event::Deliver(vector));
    }
}

struct Scratch(Mutex<[u8; 8]>);

impl BusHandler for Scratch {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.0.lock().unwrap();
        data.copy_from_slice(&bytes[offset as usize..][..data.len()]);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

struct Bench {
    space: Arc<Space>,
    root: Arc<Root>,
    ecam: Ecam,
    routes: Arc<Routes>,
    msix: Arc<Msix>,
}

/// Says how long the body was and where the access went.
struct Spy(Mutex<Vec<(Vec<u8>, usize, usize)>>);

impl CapabilityWindow for Spy {
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]) {
        self.0.lock().unwrap().push((body.to_vec(), offset, data.len()));
        data.fill(0x5a);
    }
    fn write(&self, body: &[u8], offset: usize, data: &[u8]) {
        self.0.lock().unwrap().push((body.to_vec(), offset, data.len()));
    }
}

impl Bench {
    fn new() -> Self {
        let space = Arc::new(Space::default());
        let root = Root::new(Arc::clone(&space) as _, vec![WINDOW]);
        let routes = Arc::new(Routes::default());
        let msix = Msix::new(3, Arc::clone(&routes) as _);
        let bench = Self {
            space,
            ecam: Ecam::new(Arc::clone(&root)),
            root,
            routes,
            msix,
        };
        bench.root.plug(5, bench.endpoint()).unwrap();
        bench
    }

    fn endpoint(&self) -> Endpoint {
        let bar = Regions::new()
            .with(0, 8, Arc::new(Scratch(Mutex::new([0; 8]))))
            .with(TABLE, self.msix.table_size(), self.msix.table())
            .with(PENDING, self.msix.pending_size(), self.msix.pending());
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        };
        Endpoint::new(&identity)
            .bar(0, 0x4000, Arc::new(bar))
            .unwrap()
            .capability(Capability::new(9, vec![0x11; 5]))
            .unwrap()
            .msix(Arc::clone(&self.msix), 0, TABLE as u32, PENDING as u32)
            .unwrap()
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.ecam.read((5 << 15) | offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.ecam.write((5 << 15) | offset, &value.to_le_bytes());
    }

    fn base(&self) -> u64 {
        u64::from(self.read(BAR0)) & !0xf | u64::from(self.read(BAR0 + 4)) << 32
    }

    /// Offset of a capability's header.
    fn capability(&self, id: u32) -> u64 {
        let mut at = self.read(0x34) & 0xff;
        while at != 0 {
            let header = self.read(at.into());
            if header & 0xff == id {
                return at.into();
            }
            at = header >> 8 & 0xff;
        }
        panic!("capability {id:#x} is not in the list");
    }

    fn msix_control(&self, value: u16) {
        let at = (5 << 15) | (self.capability(0x11) + 2);
        self.ecam.write(at, &value.to_le_bytes());
    }

    fn memory(&self, offset: u64) -> Option<u32> {
        let mut data = [0; 4];
        self.space
            .0
            .read(self.base() + offset, &mut data)
            .then_some(u32::from_le_bytes(data))
    }

    fn set_memory(&self, offset: u64, value: u32) {
        assert!(self.space.0.write(self.base() + offset, &value.to_le_bytes()));
    }

    fn program(&self, vector: u64, data: u32, masked: bool) {
        let entry = TABLE + vector * 16;
        self.set_memory(entry, 0xfee0_0000);
        self.set_memory(entry + 4, 0);
        self.set_memory(entry + 8, data);
        self.set_memory(entry + 12, masked.into());
    }
}

#[test]
fn enumerates_the_bridge_the_device_and_nothing_else() {
    let bench = Bench::new();
    let id = |slot: u64, function: u64| {
        let mut data = [0; 4];
        bench.ecam.read((slot << 15) | (function << 12), &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(
        [id(0, 0), id(5, 0), id(5, 1), id(6, 0), id(31, 7)],
        [0x0008_1b36, 0x1042_1af4, !0, !0, !0]
    );
    assert_eq!(bench.read(0x08), 0x0100_0001);
    assert_eq!(bench.read(0x2c), 0x0002_1af4);
    assert_eq!(bench.read(0x04) >> 16 & 0x10, 0x10);
    assert_eq!(bench.read(bench.capability(9)) >> 16, 0x1111);
    assert_eq!(bench.read(0x100), 0);
}

#[test]
fn sizes_and_moves_a_bar() {
    let bench = Bench::new();
    assert_eq!(bench.base(), 0xe000_0000);
    assert_eq!(bench.memory(0), None, "decode is off at power-on");
    bench.write(COMMAND, 0x6);
    bench.set_memory(0, 0x1234_5678);

    bench.write(COMMAND, 0);
    bench.write(BAR0, !0);
    bench.write(BAR0 + 4, !0);
    assert_eq!((bench.read(BAR0), bench.read(BAR0 + 4)), (0xffff_c00c, !0));
    bench.write(COMMAND, 2);
    assert!(
        !bench.space.0.read(0xffff_ffff_ffff_c000, &mut [0]),
        "an address outside the windows is not mapped"
    );

    bench.write(BAR0, 0xe008_0000);
    assert_eq!(bench.memory(0), None, "half-written");
    bench.write(BAR0 + 4, 0);
    assert_eq!(bench.memory(0), Some(0x1234_5678), "moved while decode is on");
    assert!(!bench.space.0.read(0xe000_0000, &mut [0]));
    bench.root.reset();
    assert_eq!(bench.base(), 0xe000_0000);
    assert_eq!(bench.memory(0), None);
}

#[test]
fn unplug_frees_slot_address_and_mapping() {
    let bench = Bench::new();
    bench.write(COMMAND, 2);
    assert_eq!(
        bench.root.plug(5, bench.endpoint()),
        Err(PlugError::SlotTaken { slot: 5 })
    );
    assert_eq!(
        bench.root.plug(32, bench.endpoint()),
        Err(PlugError::NoSuchSlot { slot: 32 })
    );
    assert_eq!(bench.root.unplug(6), Err(PlugError::SlotEmpty { slot: 6 }));
    bench.root.unplug(5).unwrap();
    assert_eq!(bench.read(0), !0);
    assert!(!bench.space.0.read(WINDOW.start, &mut [0]));
    bench.root.plug(7, bench.endpoint()).unwrap();
    bench.root.plug(5, bench.endpoint()).unwrap();
    assert_eq!(bench.base(), WINDOW.start + 0x4000);
    let big = Endpoint::new(&Identity {
        vendor: 1,
        device: 1,
        revision: 0,
        class: [0; 3],
        subsystem_vendor: 0,
        subsystem: 0,
    });
    let big = big.bar(2, 0x10_0000, Arc::new(Regions::new())).unwrap();
    assert_eq!(
        bench.root.plug(8, big),
        Err(PlugError::NoRoom {
            slot: 8,
            size: 0x10_0000
        })
    );
}

#[test]
fn legacy_ports_reach_the_same_registers() {
    let bench = Bench::new();
    let ports = ConfigPorts::new(Arc::clone(&bench.root));
    let read = |offset, length: usize| {
        let mut data = vec![0; length];
        ports.read(offset, &mut data);
        data
    };
    assert_eq!(read(4, 4), [0xff; 4]);
    ports.write(0, &0x8000_2800_u32.to_le_bytes());
    assert_eq!(read(0, 4), 0x8000_2800_u32.to_le_bytes());
    assert_eq!(read(4, 4), [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(read(6, 2), [0x42, 0x10]);
    assert_eq!(read(6, 4), [0xff; 4], "crosses the register");
    ports.write(0, &0x8000_2804_u32.to_le_bytes());
    ports.write(4, &[2, 0]);
    assert!(bench.memory(0).is_some());
    for absent in [0x8001_2800_u32, 0x8000_2900, 0x0000_2800] {
        ports.write(0, &absent.to_le_bytes());
        assert_eq!(read(4, 4), [0xff; 4]);
    }
}

#[test]
fn msix_masks_hold_and_unmasking_sends() {
    let bench = Bench::new();
    bench.write(COMMAND, 6);
    bench.program(1, 0x41, false);
    bench.msix.trigger(1);
    assert_eq!(bench.routes.take(), [], "off: neither routed nor delivered");

    bench.msix_control(0xc000);
    bench.msix.trigger(1);
    assert_eq!(bench.routes.take(), [], "function masked");
    assert_eq!(bench.memory(PENDING), Some(0b10));
    bench.msix_control(0x8000);
    assert_eq!(bench.routes.take(), [Event::Route(1, Some(0x41)), Event::Deliver(1)]);
    assert_eq!(bench.memory(PENDING), Some(0));
    bench.msix.trigger(1);
    assert_eq!(bench.routes.take(), [Event::Deliver(1)]);

    bench.set_memory(TABLE + 16 + 12, 1);
    bench.msix.trigger(1);
    bench.msix.trigger(1);
    bench.msix.trigger(77);
    bench.set_memory(TABLE + 16 + 8, 0x42);
    assert_eq!(bench.routes.take(), [Event::Route(1, None)]);
    bench.set_memory(TABLE + 16 + 12, 0);
    assert_eq!(bench.routes.take(), [Event::Route(1, Some(0x42)), Event::Deliver(1)]);

    bench.root.reset();
    assert_eq!(bench.routes.take(), [Event::Route(1, None)]);
    bench.msix.trigger(1);
    assert_eq!(bench.routes.take(), []);
}

#[test]
fn capability_windows_answer_with_the_registers_before_them() {
    let bench = Bench::new();
    let spy = Arc::new(Spy(Mutex::default()));
    let window = Capability::new(9, vec![0; 8])
        .writable(0, &[0xf0])
        .window(4, Arc::clone(&spy) as _);
    let identity = Identity {
        vendor: 1,
        device: 2,
        revision: 0,
        class: [0; 3],
        subsystem_vendor: 0,
        subsystem: 0,
    };
    bench
        .root
        .plug(1, Endpoint::new(&identity).capability(window).unwrap())
        .unwrap();
    let at = |offset: u64| (1 << 15) | offset;
    bench.ecam.write(at(0x42), &[0xff]);
    let mut data = [0; 4];
    bench.ecam.read(at(0x46), &mut data);
    assert_eq!(data, [0x5a; 4]);
    bench.ecam.write(at(0x48), &[1, 2]);
    let body = vec![0xf0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(*spy.0.lock().unwrap(), [(body.clone(), 0, 4), (body, 2, 2)]);
}

#[test]
fn refuses_endpoints_that_do_not_fit() {
    let bench = Bench::new();
    let nothing = || Arc::new(Regions::new());
    assert!(bench.endpoint().bar(0, 0x1000, nothing()).is_err());
    assert!(bench.endpoint().bar(1, 0x1000, nothing()).is_err());
    assert!(bench.endpoint().bar(6, 0x1000, nothing()).is_err());
    assert!(bench.endpoint().bar(2, 0x1800, nothing()).is_err());
    assert!(bench.endpoint().bar(2, 0x800, nothing()).is_err());
    assert!(bench.endpoint().capability(Capability::new(9, vec![0; 190])).is_err());
}

fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let width = prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)];
    (0..0x10_0000_u64, width, any::<u64>()).prop_map(|(offset, width, value)| {
        // Half of all accesses go where registers are.
        let offset = if value & 1 == 0 {
            (5 << 15) | (offset % 0x120)
        } else {
            offset
        };
        (offset, value.to_le_bytes()[..width].to_vec())
    })
}

proptest! {
    /// Any accesses whatever: no panic, identity stays, and the bus holds the BAR exactly when decode says so.
    #[test]
    fn any_config_access_keeps_the_function_sane(accesses in proptest::collection::vec(access(), 1..64)) {
        let bench = Bench::new();
        let ports = ConfigPorts::new(Arc::clone(&bench.root));
        for (offset, data) in &accesses {
            bench.ecam.write(*offset, data);
            ports.write(offset % 8, data);
            let mut seen = data.clone();
            bench.ecam.read(*offset, &mut seen);
            ports.read(offset % 8, &mut seen);
            prop_assert_eq!(bench.read(0), 0x1042_1af4);
            let base = bench.base();
            let decoded = bench.read(COMMAND) & 2 != 0 && WINDOW.contains(&base);
            prop_assert_eq!(bench.memory(0).is_some(), decoded);
        }
    }

    /// Any table accesses whatever: what is routed is what is enabled and unmasked, and nothing pending is ever deliverable.
    #[test]
    fn any_table_access_keeps_routes_in_step(steps in proptest::collection::vec((0..0x40_u64, any::<u32>(), 0..6_u16), 1..64)) {
        let bench = Bench::new();
        bench.write(COMMAND, 2);
        let mut routed = [false; 3];
        for (offset, value, action) in steps {
            match action {
                0..=2 => bench.set_memory(TABLE + offset, value),
                3 => bench.msix.trigger(u16::try_from(value % 4).unwrap()),
                _ => bench.msix_control(u16::try_from(value & 0xffff).unwrap()),
            }
            for event in bench.routes.take() {
                match event {
                    Event::Route(vector, message) => routed[usize::from(vector)] = message.is_some(),
                    Event::Deliver(vector) => prop_assert!(routed[usize::from(vector)]),
                }
            }
            let control = bench.read(bench.capability(0x11)) >> 16;
            for vector in 0..3 {
                let masked = bench.memory(TABLE + vector * 16 + 12).unwrap() & 1 != 0;
                let open = control & 0xc000 == 0x8000 && !masked;
                prop_assert_eq!(routed[vector as usize], open);
                let pending = bench.memory(PENDING).unwrap() >> vector & 1 != 0;
                prop_assert!(!(open && pending));
            }
        }
    }
}

#[test]
fn configuration_space_bars_and_messages_are_found_in_another_machine() {
    let bench = Bench::new();
    let function = 5 << 15;
    let write = |bench: &Bench, offset: u64, data: &[u8]| bench.ecam.write(function + offset, data);
    write(&bench, BAR0, &0xe000_8000_u32.to_le_bytes());
    write(&bench, COMMAND, &6_u16.to_le_bytes());
    let table = 0xe000_8000 + TABLE;
    for (vector, masked) in [(0, 0), (1, 1)] {
        for (word, value) in (0..).zip([0xfee0_0000, 0, 0x40 + vector, masked]) {
            let address = table + u64::from(vector) * 16 + word * 4;
            assert!(
                bench.space.0.write(address, &u32::to_le_bytes(value)),
                "the bar is mapped"
            );
        }
    }
    let capability = {
        let mut at = [0];
        bench.ecam.read(function + 0x34, &mut at);
        loop {
            let mut header = [0; 2];
            bench.ecam.read(function + u64::from(at[0]), &mut header);
            if header[0] == 0x11 {
                break u64::from(at[0]);
            }
            at[0] = header[1];
        }
    };
    write(&bench, capability + 2, &0x8000_u16.to_le_bytes());
    bench.msix.trigger(1);
    ConfigPorts::new(Arc::clone(&bench.root)).write(0, &0x8000_2810_u32.to_le_bytes());
    device::conformance::check(&*bench.root, || Bench::new().root);

    let again = Bench::new();
    device::conformance::load(&*again.root, &device::conformance::save(&*bench.root));
    assert_eq!(again.routes.take(), [Event::Route(0, Some(0x40))]);
    again.msix.trigger(0);
    assert_eq!(again.routes.take(), [Event::Deliver(0)]);
    assert!(
        again.space.0.write(table + 16 + 12, &[0; 4]),
        "mapped where the guest had put it"
    );
    assert_eq!(again.routes.take(), [Event::Route(1, Some(0x41)), Event::Deliver(1)]);
    let mut address = [0; 4];
    ConfigPorts::new(Arc::clone(&again.root)).read(0, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_2810);

    again.root.unplug(5).unwrap();
    let mut sections = savestate::SavedState::new();
    for section in device::conformance::save(&*bench.root) {
        sections.add(section).unwrap();
    }
    let error = device::Migrate::load(&*again.root, &mut sections.into_sections()).unwrap_err();
    assert!(error.to_string().contains("slots [0]"), "{error}");
}
