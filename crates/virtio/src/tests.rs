//! The transport and the rings as a driver sees them, with a device that turns bytes around when told to.

use std::sync::{Arc, Mutex};

use device::{Device, Draining, Migration};
use guestmem::{Bytes, GuestAddress};
use proptest::prelude::*;

use crate::mock::{Buf, MockDriver, Used, status};
use crate::{ActivateError, Activation, DeviceKind, RingError, VirtQueue, VirtioDevice, feature};

const OWN_FEATURE: u64 = 1 << 5;
/// Status: the driver gave up.
const FAILED: u8 = 128;

#[derive(Default)]
struct Turner {
    queues: Mutex<Vec<VirtQueue>>,
    config: Mutex<[u8; 8]>,
    refuse: bool,
}

impl Turner {
    /// Serves what is available now.
    fn serve(&self) {
        for queue in self.queues.lock().unwrap().iter_mut() {
            if let Err(error) = turn(queue) {
                queue.fail(&error);
            }
        }
    }
}

fn turn(queue: &mut VirtQueue) -> Result<(), RingError> {
    loop {
        while let Some(chain) = queue.pop()? {
            let input = chain.readable(queue.memory())?;
            let mut bytes = vec![0; input.len()];
            input.copy_to(&mut bytes);
            bytes.reverse();
            let written = chain.writable(queue.memory())?.copy_from(&bytes);
            queue.push(chain.head, u32::try_from(written).unwrap())?;
        }
        queue.signal()?;
        if !queue.arm()? {
            return Ok(());
        }
    }
}

impl VirtioDevice for Turner {
    fn name(&self) -> &str {
        "turner"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind::ENTROPY
    }
    fn features(&self) -> u64 {
        OWN_FEATURE
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        for (place, out) in data.iter_mut().enumerate() {
            *out = config
                .get(usize::try_from(offset).unwrap() + place)
                .copied()
                .unwrap_or(0);
        }
    }
    fn config_write(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        for (byte, &new) in config.iter_mut().skip(usize::try_from(offset).unwrap()).zip(data) {
            *byte = new;
        }
    }
    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError {
                device: "turner".into(),
                missing: "a hand",
                source: None,
            });
        }
        *self.queues.lock().unwrap() = activation.queues;
        Ok(())
    }
    fn deactivate(&self) -> Vec<VirtQueue> {
        std::mem::take(&mut self.queues.lock().unwrap())
    }
    fn pause(&self) -> Draining {
        Draining::done()
    }
    fn resume(&self) {}
    fn migration(&self) -> Migration<'_> {
        Migration::Stateless
    }
}

fn running(features: u64) -> (Arc<Turner>, MockDriver) {
    let device = Arc::new(Turner::default());
    let mut driver = MockDriver::new(Arc::clone(&device) as _);
    driver.start(features);
    (device, driver)
}

#[test]
fn is_found_as_a_modern_device() {
    let driver = MockDriver::new(Arc::new(Turner::default()));
    assert_eq!(driver.config_space_read(0, 4), 0x1044_1af4);
    assert_eq!(driver.config_space_read(8, 1), 1);
    assert_eq!(driver.config_space_read(0x2e, 2), 0x44);
    assert_eq!(driver.common(0x12, 2), 2);
    assert_eq!(
        driver.offered(),
        OWN_FEATURE | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    );
    assert_eq!(driver.common(0x10, 2), 0xffff);
    driver.set_device_config(2, &[1, 2]);
    assert_eq!(driver.device_config(0), [0, 0, 1, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn refuses_features_it_did_not_offer_and_legacy_drivers() {
    let driver = MockDriver::new(Arc::new(Turner::default()));
    driver.set_status(3);
    for (low, high, taken) in [(1_u32 << 7, 1_u32, false), (0, 0, false), (1 << 5, 1, true)] {
        for (select, value) in [(0_u32, low), (1, high)] {
            driver.set_common(0x08, &select.to_le_bytes());
            driver.set_common(0x0c, &value.to_le_bytes());
        }
        driver.set_status(0xb);
        assert_eq!(driver.status() & status::FEATURES_OK != 0, taken);
    }
    driver.set_common(0x0c, &0_u32.to_le_bytes());
    assert_eq!(driver.common(0x0c, 4), 1, "features are fixed after FEATURES_OK");
}

#[test]
fn queue_registers_take_only_what_can_be() {
    let driver = MockDriver::new(Arc::new(Turner::default()));
    driver.set_common(0x16, &1_u16.to_le_bytes());
    assert_eq!(driver.common(0x18, 2), 16);
    for (size, kept) in [(32_u16, 16), (12, 16), (0, 16), (8, 8)] {
        driver.set_common(0x18, &size.to_le_bytes());
        assert_eq!(driver.common(0x18, 2), kept);
    }
    driver.set_common(0x1a, &3_u16.to_le_bytes());
    assert_eq!(driver.common(0x1a, 2), 0xffff, "three vectors: 0 to 2");
    driver.set_common(0x1a, &2_u16.to_le_bytes());
    assert_eq!(driver.common(0x1a, 2), 2);
    driver.set_common(0x20, &0x1_2345_6780_u64.to_le_bytes());
    assert_eq!(driver.common(0x20, 8), 0x1_2345_6780);
    driver.set_common(0x1c, &1_u16.to_le_bytes());
    driver.set_common(0x20, &0_u64.to_le_bytes());
    assert_eq!(
        driver.common(0x20, 8),
        0x1_2345_6780,
        "an enabled queue stays where it is"
    );
    driver.set_common(0x16, &2_u16.to_le_bytes());
    assert_eq!(driver.common(0x18, 2), 0, "no such queue");
}

#[test]
fn carries_chains_of_every_shape() {
    for features in [0, feature::EVENT_IDX, feature::EVENT_IDX | feature::INDIRECT_DESC] {
        let (device, mut driver) = running(features);
        let input = driver.place(b"abcdef");
        let (first, second, table) = (driver.allocate(4), driver.allocate(4), driver.allocate(64));
        let bufs = [
            Buf::Readable(input, 2),
            Buf::Readable(input + 2, 0),
            Buf::Readable(input + 2, 4),
            Buf::Writable(first, 4),
            Buf::Writable(second, 4),
        ];
        for _ in 0..200 {
            driver.memory().write_slice(&[0; 20], GuestAddress(first)).unwrap();
            let head = if features & feature::INDIRECT_DESC == 0 {
                driver.ring(1).add(&bufs)
            } else {
                driver.ring(1).add_indirect(table, &bufs)
            };
            device.serve();
            assert_eq!(driver.wait_used(1), Used { head, len: 6 });
            assert_eq!(driver.bytes(first, 4), b"fedc");
            assert_eq!(driver.bytes(second, 4), b"ba\0\0");
        }
        assert_eq!(driver.routes().delivered(1), 0, "nothing happened on queue 0");
    }
}

#[test]
fn event_idx_holds_interrupts_back() {
    let (device, mut driver) = running(feature::EVENT_IDX);
    let out = driver.allocate(16);
    driver.ring(0).coalesce(3);
    for (nth, expected) in [(1, 0), (2, 0), (3, 1)] {
        driver.submit(0, &[Buf::Writable(out, 1)]);
        device.serve();
        assert_eq!(driver.routes().delivered(1), expected, "after {nth}");
    }
}

#[test]
fn doorbells_ring_their_queues_event() {
    let (device, driver) = running(0);
    driver.kick(1);
    let queues = device.queues.lock().unwrap();
    assert_eq!(queues[1].kick().read().unwrap(), 1);
    assert!(queues[0].kick().read().is_err(), "not rung, and does not block");
}

#[test]
fn reset_takes_queues_back_and_the_next_driver_starts_anew() {
    let (device, mut driver) = running(0);
    let out = driver.allocate(16);
    driver.submit(0, &[Buf::Writable(out, 1)]);
    device.serve();
    driver.wait_used(0);
    driver.reset();
    assert!(device.queues.lock().unwrap().is_empty());
    driver.start(feature::EVENT_IDX);
    assert_eq!(device.queues.lock().unwrap()[0].position(), (0, 0));
    driver.submit(0, &[Buf::Writable(out, 1)]);
    device.serve();
    driver.wait_used(0);
    driver.transport().reset();
    assert_eq!(driver.status(), 0);
    assert!(device.queues.lock().unwrap().is_empty());
}

#[test]
fn a_device_that_can_not_start_asks_for_a_reset() {
    let device = Turner {
        refuse: true,
        ..Turner::default()
    };
    let mut driver = MockDriver::new(Arc::new(device));
    driver.start(0);
    assert_eq!(driver.status(), 0xf | status::NEEDS_RESET);
    assert_eq!(driver.routes().delivered(0), 1);
    assert_eq!((driver.isr(), driver.isr()), (2, 0));
    driver.reset();
}

#[test]
fn a_driver_that_gave_up_is_remembered_until_reset() {
    let driver = MockDriver::new(Arc::new(Turner::default()));
    driver.set_status(status::ACKNOWLEDGE);
    driver.set_status(status::ACKNOWLEDGE | FAILED);
    assert_eq!(driver.status(), status::ACKNOWLEDGE | FAILED);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_without_vectors_is_told_by_the_isr() {
    let (device, mut driver) = running(0);
    for vector in [0xffff_u16, 1] {
        driver.set_common(0x16, &0_u16.to_le_bytes());
        driver.set_common(0x1a, &vector.to_le_bytes());
        let out = driver.allocate(16);
        driver.submit(0, &[Buf::Writable(out, 1)]);
        device.serve();
        assert_eq!(driver.isr(), u8::from(vector == 0xffff));
    }
    assert_eq!(driver.routes().delivered(1), 1);
}

/// What a driver may do wrong with its rings.
fn sabotage(driver: &mut MockDriver, how: usize) {
    let ring = driver.ring(0);
    let size = ring.size();
    let link = match how {
        0 => return ring.offer(size),
        1 => return ring.set_available_index(size + 1),
        2 => (0x8000_0000_0000, 16, 2, 0),
        3 => (0x10_0000, 16, 1, 0),
        4 => (0x10_0000, 16, 3, size),
        5 => (u64::MAX, u32::MAX, 0, 0),
        6 => (0x10_0000, 17, 4, 0),
        7 => (0x8000_0000_0000, 16, 4, 0),
        8 => (0x10_0000, 0, 4, 0),
        _ => {
            ring.write_descriptor(1, 0x10_0000, 8, (0, 0));
            (0x10_0000, 8, 3, 1)
        }
    };
    ring.write_descriptor(0, link.0, link.1, (link.2, link.3));
    ring.offer(0);
}

#[test]
fn hostile_rings_stop_the_device_until_reset() {
    let (device, mut driver) = running(0);
    for how in 0..10 {
        sabotage(&mut driver, how);
        device.serve();
        assert_eq!(driver.status(), 0xf | status::NEEDS_RESET, "sabotage {how}");
        assert_eq!(driver.transport().stops(), how as u64 + 1);
        driver.start(0);
        assert_eq!(driver.status(), 0xf);
    }
}

#[test]
fn queues_outside_of_memory_are_not_taken() {
    let mut driver = MockDriver::new(Arc::new(Turner::default()));
    for (offset, address) in [(0x20, 64_u64 << 20), (0x28, u64::MAX - 1), (0x30, 3), (0x20, 8)] {
        driver.negotiate(0);
        driver.set_common(offset, &address.to_le_bytes());
        driver.set_common(0x1c, &1_u16.to_le_bytes());
        driver.set_status(0xf);
        assert_eq!(driver.status(), 0xf | status::NEEDS_RESET);
    }
}

#[test]
fn configuration_space_alone_reaches_the_bar() {
    let driver = MockDriver::new(Arc::new(Turner::default()));
    let mut at = driver.config_space_read(0x34, 1);
    while driver.config_space_read(at + 3, 1) != 5 {
        at = driver.config_space_read(at + 1, 1);
    }
    let aim = |offset: u32, length: u32| {
        driver.config_space_write(at + 4, &[0]);
        driver.config_space_write(at + 8, &offset.to_le_bytes());
        driver.config_space_write(at + 12, &length.to_le_bytes());
    };
    aim(0x12, 2);
    assert_eq!(driver.config_space_read(at + 16, 4), 2, "number of queues");
    aim(0x14, 1);
    driver.config_space_write(at + 16, &[1]);
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
    for (offset, length) in [(u32::MAX, 4), (0x1_0000, 1), (1, 2), (0, 3), (0, u32::MAX)] {
        aim(offset, length);
        assert_eq!(driver.config_space_read(at + 16, 4), 0);
        driver.config_space_write(at + 16, &[0xff; 4]);
    }
}

proptest! {
    /// Whatever is written to the BAR, nothing panics and a reset brings the device back.
    #[test]
    fn any_register_access_leaves_a_device_that_works(
        accesses in proptest::collection::vec((0..0x5000_u64, 0..4_u32, any::<u64>()), 0..60)
    ) {
        let (device, mut driver) = running(0);
        for (offset, width, value) in accesses {
            // Most go to the 64 bytes of common configuration.
            let offset = if value & 0x100 == 0 { offset % 0x40 } else { offset };
            let mut data = value.to_le_bytes()[..1 << width].to_vec();
            driver.bar_write(offset, &data);
            driver.bar_read(offset, &mut data);
            device.serve();
        }
        driver.start(0);
        let out = driver.allocate(16);
        driver.submit(0, &[Buf::Writable(out, 1)]);
        device.serve();
        driver.wait_used(0);
    }

    /// Whatever lies in the rings, the device comes to an end with them.
    #[test]
    fn any_ring_contents_end(
        descriptors in proptest::collection::vec((0..0x40_0000_u64, 0..64_u32, 0..8_u16, 0..18_u16), 16),
        heads in proptest::collection::vec(0..17_u16, 1..16), skip in 0..20_u16
    ) {
        let (device, mut driver) = running(0);
        for (index, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            driver.ring(1).write_descriptor(index, gpa, len, (flags, next));
        }
        for head in heads {
            driver.ring(1).offer(head);
        }
        if skip > 16 {
            driver.ring(1).set_available_index(skip);
        }
        device.serve();
        let broken = driver.status() & status::NEEDS_RESET != 0;
        let mut given_back = 0;
        while driver.ring(1).take_used().is_some() {
            given_back += 1;
        }
        prop_assert!(broken || given_back > 0);
    }
}

#[test]
fn a_driver_goes_on_in_another_machine() {
    for features in [0, feature::EVENT_IDX | feature::INDIRECT_DESC] {
        let (device, mut driver) = running(features);
        let ask = |driver: &mut MockDriver, device: &Turner, text: &[u8]| {
            let input = driver.place(text);
            let output = driver.allocate(text.len());
            let length = u32::try_from(text.len()).unwrap();
            driver.submit(0, &[Buf::Readable(input, length), Buf::Writable(output, length)]);
            device.serve();
            assert_eq!(driver.wait_used(0).len, length);
            driver.bytes(output, text.len())
        };
        assert_eq!(ask(&mut driver, &device, b"abc"), b"cba");
        driver.transport().pause().wait();
        let transport = Arc::clone(driver.transport());
        device::conformance::check(&*transport, || driver.twin(Arc::new(Turner::default())));
        transport.resume();
        let mut last = device;
        for round in 0..100_u8 {
            let next = Arc::new(Turner::default());
            driver.move_to(Arc::clone(&next) as _);
            assert_eq!(last.queues.lock().unwrap().len(), 0, "the old machine is gone");
            assert_eq!(ask(&mut driver, &next, &[round, 7]), [7, round]);
            last = next;
        }
        let status = driver.status();
        assert_eq!(status, 15);
        driver.reset();
    }
}

#[test]
fn a_device_that_gave_up_has_given_up_in_another_machine_too() {
    let (device, mut driver) = running(0);
    driver.submit(0, &[Buf::Readable(1 << 50, 16)]);
    device.serve();
    driver.wait_needs_reset();
    let next = Arc::new(Turner::default());
    driver.move_to(Arc::clone(&next) as _);
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert!(next.queues.lock().unwrap().is_empty());
    driver.reset();
    driver.start(0);
    assert_eq!(driver.status(), 15);
}

#[test]
fn the_state_of_another_device_is_refused() {
    struct Other(Turner);
    impl VirtioDevice for Other {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn kind(&self) -> DeviceKind {
            DeviceKind::BLOCK
        }
        fn features(&self) -> u64 {
            self.0.features()
        }
        fn queue_sizes(&self) -> &[u16] {
            self.0.queue_sizes()
        }
        fn config_read(&self, offset: u64, data: &mut [u8]) {
            self.0.config_read(offset, data);
        }
        fn config_write(&self, _offset: u64, _data: &[u8]) {}
        fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
            self.0.activate(activation)
        }
        fn deactivate(&self) -> Vec<VirtQueue> {
            self.0.deactivate()
        }
        fn pause(&self) -> Draining {
            Draining::done()
        }
        fn resume(&self) {}
        fn migration(&self) -> Migration<'_> {
            Migration::Immovable {
                why: "it is here by mistake",
            }
        }
    }
    let (_device, driver) = running(0);
    driver.transport().pause().wait();
    let sections = device::conformance::save(&**driver.transport());
    let mut state = savestate::SavedState::new();
    sections.into_iter().for_each(|section| state.add(section).unwrap());
    let other = driver.twin(Arc::new(Other(Turner::default())));
    assert!(matches!(other.migration(), Migration::Immovable { .. }));
    let error = device::Migrate::load(&*other, &mut state.into_sections()).unwrap_err();
    assert!(
        error.to_string().contains("type 2") && error.to_string().contains("type 4"),
        "{error}"
    );
}
