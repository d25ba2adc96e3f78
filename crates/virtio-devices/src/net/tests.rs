//! The network card as a driver sees it, with sockets that keep messages whole for a tap.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::Device;
use guestmem::{Bytes, GuestAddress};
use proptest::prelude::*;
use tap::Offloads;
use virtio::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio::mock::{Buf, MockDriver, Used};

use super::config::feature;
use super::{Net, NetOptions, Wire};

const HEADER: usize = 12;
const RX: u16 = 0;
const TX: u16 = 1;

#[derive(Default)]
struct Settings {
    offloads: Vec<Offloads>,
    /// Attached or detached, in order.
    attached: Vec<bool>,
}

struct Sockets {
    queues: Vec<Arc<OwnedFd>>,
    settings: Arc<Mutex<Settings>>,
}

impl Wire for Sockets {
    fn queues(&self) -> &[Arc<OwnedFd>] {
        &self.queues
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.settings.lock().unwrap().offloads.push(offloads);
        Ok(())
    }
    fn set_attached(&self, _queue: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
        self.settings.lock().unwrap().attached.push(attached);
        Ok(())
    }
}

struct Bench {
    device: Arc<Net>,
    driver: MockDriver,
    /// The other ends.
    far: Vec<UnixDatagram>,
    settings: Arc<Mutex<Settings>>,
}

impl Bench {
    fn new(pairs: usize, wanted: u64) -> Self {
        let (device, far, settings) = Self::card(pairs);
        let mut driver = MockDriver::new(Arc::clone(&device) as _);
        driver.start(wanted);
        Self {
            device,
            driver,
            far,
            settings,
        }
    }

    /// A card with a wire of its own, and the wire's other ends.
    fn card(pairs: usize) -> (Arc<Net>, Vec<UnixDatagram>, Arc<Mutex<Settings>>) {
        let (near, far): (Vec<_>, Vec<_>) = (0..pairs).map(|_| UnixDatagram::pair().unwrap()).unzip();
        for (near, far) in near.iter().zip(&far) {
            near.set_nonblocking(true).unwrap();
            far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let settings: Arc<Mutex<Settings>> = Arc::default();
        let wire = Sockets {
            queues: near.into_iter().map(|socket| Arc::new(OwnedFd::from(socket))).collect(),
            settings: Arc::clone(&settings),
        };
        let options = NetOptions {
            name: "net0".into(),
            mac: [2, 1, 2, 3, 4, 5],
            mtu: Some(1400),
        };
        (Arc::new(Net::new(Box::new(wire), options)), far, settings)
    }

    /// Posts a receive buffer of these parts; returns their addresses.
    fn post(&mut self, queue: u16, parts: &[u32]) -> Vec<u64> {
        let places: Vec<u64> = parts.iter().map(|&part| self.driver.allocate(part as usize)).collect();
        let bufs: Vec<Buf> = places
            .iter()
            .zip(parts)
            .map(|(&at, &part)| Buf::Writable(at, part))
            .collect();
        self.driver.submit(queue, &bufs);
        places
    }

    /// Has the driver send `frame` behind an empty header.
    fn send(&mut self, queue: u16, frame: &[u8]) -> Used {
        let bytes = [&[0; HEADER], frame].concat();
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let parts = [head, tail].map(|part| {
            let at = self.driver.place(part);
            Buf::Readable(at, u32::try_from(part.len()).unwrap())
        });
        self.driver.submit(queue, &parts);
        self.driver.wait_used(queue)
    }

    /// Sends a frame from the other end.
    fn arrive(&self, lane: usize, frame: &[u8]) {
        self.far[lane].send(&[&[0; HEADER], frame].concat()).unwrap();
    }

    /// What came out at the other end, without its header.
    fn departed(&self, lane: usize) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let length = self.far[lane].recv(&mut bytes).unwrap();
        bytes[HEADER..length].to_vec()
    }

    /// Asks for `pairs` on the control queue; returns the answer.
    fn set_pairs(&mut self, control: u16, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        let command = self.driver.place(&[4, 0, low, high]);
        let ack = self.driver.place(&[0xee]);
        let bufs = [
            Buf::Readable(command, 2),
            Buf::Readable(command + 2, 2),
            Buf::Writable(ack, 1),
        ];
        self.driver.submit(control, &bufs);
        self.driver.wait_used(control);
        self.driver.bytes(ack, 1)[0]
    }
}

fn frame(length: usize, seed: u8) -> Vec<u8> {
    (0..=255).cycle().skip(seed.into()).take(length).collect()
}

fn num_buffers(bench: &Bench, at: u64) -> u16 {
    bench.driver.memory().read_obj(GuestAddress(at + 10)).unwrap()
}

#[test]
fn tells_what_it_is() {
    let bench = Bench::new(3, u64::MAX);
    assert_eq!(bench.driver.common(0x12, 2), 7);
    assert_eq!(
        bench.driver.device_config(0),
        [2, 1, 2, 3, 4, 5, 1, 0, 3, 0, 0x78, 5, 0, 0]
    );
    let several = feature::MQ | feature::CTRL_VQ | feature::MTU;
    assert_eq!(bench.driver.offered() & several, several);
    let single = Bench::new(1, u64::MAX);
    assert_eq!(single.driver.offered() & several, feature::MTU);
    assert_eq!(single.driver.common(0x12, 2), 2);
}

#[test]
fn sends_what_the_driver_gives() {
    let mut bench = Bench::new(1, EVENT_IDX | INDIRECT_DESC);
    for (seed, length) in [(0, 14), (1, 60), (2, 1514), (3, 65_000)] {
        let frame = frame(length, seed);
        assert_eq!(bench.send(TX, &frame).len, 0);
        assert!(bench.departed(0) == frame);
    }
    let counters = bench.device.counters();
    assert_eq!(counters.sent_frames.load(Ordering::Relaxed), 4);
    assert_eq!(counters.sent_bytes.load(Ordering::Relaxed), 14 + 60 + 1514 + 65_000);
    let short = bench.driver.place(&[0; 11]);
    bench.driver.submit(TX, &[Buf::Readable(short, 11)]);
    bench.driver.wait_used(TX);
    assert_eq!(bench.device.counters().dropped_frames.load(Ordering::Relaxed), 1);
}

#[test]
fn receives_into_one_chain_without_merging() {
    let mut bench = Bench::new(1, EVENT_IDX);
    let first = frame(1000, 7);
    bench.arrive(0, &first);
    std::thread::sleep(Duration::from_millis(5));
    let places = bench.post(RX, &[12, 600, 2000]);
    assert_eq!(bench.driver.wait_used(RX).len, 1012);
    assert_eq!(num_buffers(&bench, places[0]), 1);
    assert!(bench.driver.bytes(places[1], 600) == first[..600]);
    assert!(bench.driver.bytes(places[2], 400) == first[600..]);
    // Buffers first, frame later.
    let places = bench.post(RX, &[1526]);
    bench.arrive(0, &[9; 60]);
    assert_eq!(bench.driver.wait_used(RX).len, 72);
    assert_eq!(bench.driver.bytes(places[0] + 12, 60), [9; 60]);
    assert_eq!(bench.settings.lock().unwrap().offloads, [Offloads::default()]);
}

#[test]
fn frames_longer_than_the_buffers_are_lost_whole() {
    for features in [EVENT_IDX, EVENT_IDX | feature::MRG_RXBUF] {
        let mut bench = Bench::new(1, features);
        let place = bench.post(RX, &[1526])[0];
        bench.arrive(0, &frame(3000, 1));
        bench.arrive(0, &[9; 60]);
        assert_eq!(bench.driver.wait_used(RX).len, 72);
        assert_eq!(bench.driver.bytes(place + 12, 60), [9; 60]);
        assert_eq!(bench.device.counters().wire_errors.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn merges_buffers_for_long_frames() {
    let mut bench = Bench::new(
        1,
        EVENT_IDX | feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4,
    );
    let all: Vec<u64> = (0..60).map(|_| bench.post(RX, &[1500])[0]).collect();
    let long = frame(60_000, 3);
    bench.arrive(0, &long);
    bench.arrive(0, &[5; 100]);
    let count = (60_000 + HEADER).div_ceil(1500);
    let mut bytes = Vec::new();
    for place in all.iter().take(count) {
        let used = bench.driver.wait_used(RX);
        bytes.extend(bench.driver.bytes(*place, used.len as usize));
    }
    assert_eq!(usize::from(num_buffers(&bench, all[0])), count);
    assert!(bytes[HEADER..] == long);
    // Too little is posted for the longest frame now; more room lets the short one through, into what was posted first.
    for _ in 0..30 {
        bench.post(RX, &[1500]);
    }
    assert_eq!(bench.driver.wait_used(RX).len, 112);
    assert_eq!(num_buffers(&bench, all[count]), 1);
    let wanted = Offloads {
        checksum: true,
        tso4: true,
        tso6: false,
    };
    assert_eq!(bench.settings.lock().unwrap().offloads, [wanted]);
}

#[test]
fn a_flood_in_both_directions_arrives_in_order() {
    let mut bench = Bench::new(1, EVENT_IDX | feature::MRG_RXBUF);
    for _ in 0..100 {
        bench.post(RX, &[2048]);
    }
    for round in 0..40_u8 {
        for number in 0..5 {
            bench.arrive(0, &[round, number]);
            bench.send(TX, &[number, round]);
        }
        for number in 0..5 {
            assert_eq!(bench.departed(0), [number, round]);
            assert_eq!(bench.driver.wait_used(RX).len, 14);
            bench.post(RX, &[2048]);
        }
    }
    assert_eq!(bench.device.counters().received_frames.load(Ordering::Relaxed), 200);
}

#[test]
fn pairs_are_attached_as_the_driver_asks() {
    let mut bench = Bench::new(3, EVENT_IDX | feature::MQ | feature::CTRL_VQ);
    let attached = |bench: &Bench| std::mem::take(&mut bench.settings.lock().unwrap().attached);
    assert_eq!(attached(&bench), [false, false], "one pair to begin with");
    bench.post(4, &[2048]);
    bench.arrive(2, b"early");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.ring(4).take_used(), None, "detached");
    assert_eq!(bench.set_pairs(6, 3), 0);
    assert_eq!(attached(&bench), [true, true]);
    assert_eq!(bench.driver.wait_used(4).len, 17);
    for pair in 0..3_u16 {
        bench.send(2 * pair + 1, &[u8::try_from(pair).unwrap(); 20]);
        assert_eq!(bench.departed(pair.into()), [u8::try_from(pair).unwrap(); 20]);
    }
    assert_eq!([bench.set_pairs(6, 0), bench.set_pairs(6, 4)], [1, 1]);
    assert_eq!(bench.set_pairs(6, 2), 0);
    assert_eq!(attached(&bench), [false]);
    let nonsense = bench.driver.place(&[0, 9, 9]);
    let ack = bench.driver.place(&[0xee]);
    bench
        .driver
        .submit(6, &[Buf::Readable(nonsense, 3), Buf::Writable(ack, 1)]);
    bench.driver.wait_used(6);
    assert_eq!(bench.driver.bytes(ack, 1), [1]);
    // Without MQ the control queue is the third one.
    bench.driver.start(feature::CTRL_VQ);
    assert_eq!(bench.set_pairs(2, 1), 0);
}

#[test]
fn pause_keeps_frames_and_buffers_for_later() {
    let mut bench = Bench::new(2, EVENT_IDX | feature::MRG_RXBUF);
    let places: Vec<u64> = (0..8).map(|_| bench.post(RX, &[2048])[0]).collect();
    bench.arrive(0, b"first");
    bench.driver.wait_used(RX);
    bench.driver.transport().pause().wait();
    bench.arrive(0, b"second");
    let out = bench.driver.place(&[0x42; 20]);
    bench.driver.submit(TX, &[Buf::Readable(out, 20)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(
        (bench.driver.ring(RX).take_used(), bench.driver.ring(TX).take_used()),
        (None, None)
    );
    bench.driver.transport().resume();
    assert_eq!(bench.driver.wait_used(RX).len, 18);
    assert_eq!(bench.driver.bytes(places[1] + 12, 6), b"second");
    bench.driver.wait_used(TX);
    assert_eq!(bench.departed(0), [0x42; 8]);
}

#[test]
fn resets_and_starts_again_under_traffic() {
    let mut bench = Bench::new(2, EVENT_IDX | feature::MRG_RXBUF | feature::MQ | feature::CTRL_VQ);
    for round in 0..10_u8 {
        bench.post(RX, &[2048]);
        bench.arrive(0, &[round; 30]);
        bench.arrive(0, &[round; 30]);
        bench.driver.wait_used(RX);
        bench.driver.start(EVENT_IDX);
        // The second frame waited for the next driver.
        bench.post(RX, &[2048]);
        bench.driver.wait_used(RX);
    }
    assert_eq!(bench.device.counters().received_frames.load(Ordering::Relaxed), 20);
}

#[test]
fn hostile_chains_stop_the_device_until_reset() {
    let mut bench = Bench::new(1, 0);
    for (queue, buf) in [
        (RX, Buf::Writable(0x10_0000, 11)),
        (RX, Buf::Readable(0x10_0000, 100)),
        (RX, Buf::Writable(1 << 45, 2048)),
        (TX, Buf::Readable(u64::MAX - 3, 2048)),
    ] {
        bench.driver.submit(queue, &[buf]);
        bench.driver.wait_needs_reset();
        bench.driver.start(0);
        bench.send(TX, &[1; 60]);
        assert_eq!(bench.departed(0), [1; 60]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the descriptors say, the card works again after a reset.
    #[test]
    fn any_chains_leave_a_card_that_works(
        descriptors in proptest::collection::vec((0..0x11_0000_u64, 0..4096_u32, 0..8_u16, 0..18_u16), 16),
        heads in proptest::collection::vec((0..17_u16, 0..2_u16), 1..12), merge in any::<bool>(),
    ) {
        let mut bench = Bench::new(1, if merge { feature::MRG_RXBUF } else { 0 });
        bench.arrive(0, &[7; 3000]);
        for (index, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            for queue in [RX, TX] {
                let gpa = 0x10_0000 + (gpa & 0xffff);
                bench.driver.ring(queue).write_descriptor(index, gpa, len, (flags, next));
            }
        }
        for (head, queue) in heads {
            bench.driver.ring(queue).offer(head);
            bench.driver.kick(queue);
        }
        bench.driver.start(0);
        bench.far[0].set_nonblocking(true).unwrap();
        while bench.far[0].recv(&mut [0; 8192]).is_ok() {}
        bench.send(TX, &[1; 60]);
        prop_assert_eq!(bench.departed(0), [1; 60]);
    }
}

/// On a real tap, which stays down, so that no frame leaves. Needs a tun driver and `CAP_NET_ADMIN`; says so where they are missing.
#[test]
fn a_tap_takes_what_the_card_sets() {
    let name = format!("kcard{}", std::process::id() % 1_000_000);
    let queues = match tap::open(&name, 2) {
        Ok(queues) => queues,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let options = NetOptions {
        name: "net0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
    };
    let kept: Vec<_> = queues.iter().map(|queue| queue.try_clone().unwrap()).collect();
    let device = Arc::new(Net::new(
        Box::new(super::TapWire::new(queues).unwrap()),
        options.clone(),
    ));
    let mut driver = MockDriver::new(Arc::clone(&device) as _);
    let wanted = feature::MQ | feature::CTRL_VQ | feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6;
    for features in [wanted, EVENT_IDX, wanted, EVENT_IDX] {
        driver.start(features);
        let into = driver.allocate(2048);
        driver.submit(RX, &[Buf::Writable(into, 2048)]);
        let out = driver.place(&[0; 72]);
        driver.submit(TX, &[Buf::Readable(out, 72)]);
        driver.wait_used(TX);
        if features == wanted {
            let command = driver.place(&[4, 0, 2, 0]);
            let ack = driver.place(&[0xee]);
            driver.submit(4, &[Buf::Readable(command, 4), Buf::Writable(ack, 1)]);
            driver.wait_used(4);
            assert_eq!(driver.bytes(ack, 1), [0]);
        }
    }
    assert_eq!(
        device.counters().dropped_frames.load(Ordering::Relaxed),
        4,
        "the tap is down"
    );
    // A card that takes the same queues after this one finds them as this one did.
    drop((driver, device));
    let again = super::TapWire::new(kept).unwrap();
    let mut driver = MockDriver::new(Arc::new(Net::new(Box::new(again), options)));
    driver.start(wanted);
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn goes_on_in_another_machine_on_another_wire() {
    for wanted in [EVENT_IDX | feature::MQ | feature::CTRL_VQ | feature::MRG_RXBUF, 0] {
        let mut bench = Bench::new(2, wanted);
        if wanted != 0 {
            assert_eq!(bench.set_pairs(4, 2), 0);
        }
        // Posted, and in the hands of the worker until the pause.
        let posted: Vec<u64> = (0..3).map(|_| bench.post(RX, &[2000])[0]).collect();
        bench.arrive(0, b"before");
        assert_eq!(bench.driver.wait_used(RX).len as usize, HEADER + 6);
        bench.driver.transport().pause().wait();
        let transport = Arc::clone(bench.driver.transport());
        let keep = Mutex::new(Vec::new());
        device::conformance::check(&*transport, || {
            let (device, far, _) = Bench::card(2);
            keep.lock().unwrap().push(far);
            bench.driver.twin(device)
        });
        let (device, far, settings) = Bench::card(2);
        bench.driver.move_to(Arc::clone(&device) as _);
        (bench.device, bench.far, bench.settings) = (device, far, settings);
        assert_eq!(bench.settings.lock().unwrap().offloads.len(), 1, "the new wire is told");
        let last = bench.settings.lock().unwrap().attached.last().copied();
        assert_eq!(last, Some(wanted != 0), "the second pair takes frames, or not");
        bench.arrive(0, b"after");
        assert_eq!(bench.driver.wait_used(RX).len as usize, HEADER + 5);
        assert_eq!(bench.driver.bytes(posted[1] + HEADER as u64, 5), b"after");
        bench.send(TX, b"out");
        assert_eq!(bench.departed(0), b"out");
    }
}
