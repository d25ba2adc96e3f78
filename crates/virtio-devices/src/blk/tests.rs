//! The block device as a driver sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::Device;
use disk::{Access, Disk, DiskErrorKind, DiskOp, Fault, FaultPlan, Faulty, Geometry, InMemory};
use guestmem::{Bytes, GuestAddress};
use proptest::prelude::*;
use virtio::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio::mock::{Buf, MockDriver};

use super::config::feature;
use super::{Blk, BlkOptions};
use crate::test_disks::Held;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const EVERYTHING: u64 = u64::MAX;

fn options(queues: u16) -> BlkOptions {
    BlkOptions {
        name: "disk0".into(),
        serial: "a-serial-longer-than-twenty".into(),
        queues,
        queue_size: 128,
    }
}

struct Bench {
    device: Arc<Blk>,
    driver: MockDriver,
}

/// Where the parts of a submitted request lie.
struct Sent {
    head: u16,
    data: u64,
    status: u64,
}

impl Bench {
    fn on(disk: impl Disk + 'static, queues: u16, wanted: u64) -> Self {
        let device = Arc::new(Blk::new(Arc::new(disk), options(queues)));
        let mut driver = MockDriver::new(Arc::clone(&device) as _);
        driver.start(wanted);
        Self { device, driver }
    }

    fn header(&mut self, kind: u32, sector: u64) -> u64 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.place(&header)
    }

    /// Starts a request with `data` to the device, or room for `room` bytes from it.
    fn send(&mut self, queue: u16, kind: u32, sector: u64, data: &[u8], room: u32) -> Sent {
        let header = self.header(kind, sector);
        let status = self.driver.place(&[0xee]);
        let at = if room > 0 {
            self.driver.allocate(room as usize)
        } else {
            self.driver.place(data)
        };
        let middle = if room > 0 {
            Buf::Writable(at, room)
        } else {
            Buf::Readable(at, u32::try_from(data.len()).unwrap())
        };
        let bufs = [Buf::Readable(header, 16), middle, Buf::Writable(status, 1)];
        let head = self.driver.submit(queue, &bufs);
        Sent { head, data: at, status }
    }

    /// Does one request on queue 0: status, bytes the device says it wrote, data.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, u32, Vec<u8>) {
        let sent = self.send(0, kind, sector, data, room);
        let used = self.driver.wait_used(0);
        assert_eq!(used.head, sent.head);
        let status = self.driver.bytes(sent.status, 1)[0];
        (status, used.len, self.driver.bytes(sent.data, room as usize))
    }

    fn status_of(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> u8 {
        self.ask(kind, sector, data, room).0
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn tells_what_it_is() {
    let bench = Bench::on(InMemory::new(Geometry::of_size(1 << 20)), 4, EVERYTHING);
    let offered = bench.driver.offered();
    let writable = feature::MQ | feature::DISCARD | feature::WRITE_ZEROES | feature::CONFIG_WCE | feature::FLUSH;
    assert_eq!(offered & writable, writable);
    assert_eq!(offered & feature::RO, 0);
    assert_eq!(u64::from_le_bytes(bench.driver.device_config(0)), 2048);
    assert_eq!(u32::from_le_bytes(bench.driver.device_config(12)), 126);
    assert_eq!(u32::from_le_bytes(bench.driver.device_config(20)), 512);
    assert_eq!(
        bench.driver.device_config(24),
        [3],
        "8 logical sectors are a physical one"
    );
    assert_eq!(u16::from_le_bytes(bench.driver.device_config(34)), 4);
    assert_eq!(u32::from_le_bytes(bench.driver.device_config(44)), 8);
    assert_eq!(bench.driver.device_config(58), [0; 4]);

    let sealed = Bench::on(InMemory::holding(vec![7; 1024], Access::ReadOnly), 1, EVERYTHING);
    let offered = sealed.driver.offered();
    assert_eq!(offered & feature::RO, feature::RO);
    assert_eq!(offered & (feature::MQ | feature::DISCARD | feature::WRITE_ZEROES), 0);
}

#[test]
fn what_was_written_is_read_on_every_queue() {
    let disk = InMemory::new(Geometry::of_size(1 << 20));
    let mut bench = Bench::on(disk.clone(), 3, EVENT_IDX | INDIRECT_DESC);
    for queue in 0..3_u16 {
        let sector = u64::from(queue) * 100;
        let data: Vec<u8> = (0..=255).cycle().skip(queue.into()).take(20 * 512).collect();
        let write = bench.send(queue, OUT, sector, &data, 0);
        assert_eq!(bench.driver.wait_used(queue).len, 1);
        assert_eq!(bench.driver.bytes(write.status, 1), [OK]);
        let read = bench.send(queue, IN, sector, &[], 20 * 512);
        assert_eq!(bench.driver.wait_used(queue).len, 20 * 512 + 1);
        assert_eq!(bench.driver.bytes(read.status, 1), [OK]);
        assert!(bench.driver.bytes(read.data, 20 * 512) == data);
        let start = usize::from(queue) * 51200;
        assert!(disk.contents()[start..start + data.len()] == data[..]);
    }
    let figures = bench.device.figures().snapshot();
    assert_eq!((figures.reads.latency.count, figures.reads.bytes), (3, 3 * 20 * 512));
    assert_eq!((figures.writes.latency.count, figures.writes.bytes), (3, 3 * 20 * 512));
    assert!(figures.reads.latency.quantile(1.0).unwrap() < Duration::from_secs(10));
    assert_eq!(figures.errors, 0);
}

#[test]
fn borders_of_buffers_mean_nothing() {
    let disk = InMemory::new(Geometry::of_size(1 << 20));
    let mut bench = Bench::on(disk.clone(), 1, 0);
    let header = bench.header(OUT, 2);
    let data = bench.driver.place(&[0xa5; 1024]);
    let status = bench.driver.allocate(1);
    // Header and data share buffers: 10 bytes, then the rest of the header and the first data, then the rest.
    let mut joined = bench.driver.bytes(header + 10, 6);
    joined.extend([0xa5; 3]);
    let joined = bench.driver.place(&joined);
    let bufs = [
        Buf::Readable(header, 10),
        Buf::Readable(joined, 9),
        Buf::Readable(data, 1021),
        Buf::Writable(status, 1),
    ];
    bench.driver.submit(0, &bufs);
    bench.driver.wait_used(0);
    assert!(disk.contents()[1024..2048].iter().all(|&byte| byte == 0xa5));
    // The status is the last byte of a longer buffer.
    let header = bench.header(IN, 2);
    let into = bench.driver.allocate(1025);
    bench.driver.submit(
        0,
        &[
            Buf::Readable(header, 16),
            Buf::Writable(into, 500),
            Buf::Writable(into + 500, 525),
        ],
    );
    assert_eq!(bench.driver.wait_used(0).len, 1025);
    let bytes = bench.driver.bytes(into, 1025);
    assert!(bytes[..1024].iter().all(|&byte| byte == 0xa5));
    assert_eq!(bytes[1024], OK);
}

#[test]
fn zeroes_discards_flushes_and_names_itself() {
    let disk = InMemory::holding(vec![0xff; 64 * 512], Access::ReadWrite);
    let mut bench = Bench::on(disk.clone(), 1, EVERYTHING);
    assert_eq!(
        bench.status_of(WRITE_ZEROES, 0, &[range(0, 2, 1), range(8, 1, 0)].concat(), 0),
        OK
    );
    let zeroes = |sector: usize| disk.contents()[sector * 512..][..512].iter().all(|&byte| byte == 0);
    assert_eq!([0, 1, 2, 7, 8, 9].map(zeroes), [true, true, false, false, true, false]);
    assert_eq!(bench.status_of(DISCARD, 0, &range(16, 8, 0), 0), OK);
    assert_eq!(bench.status_of(FLUSH, 0, &[], 0), OK);
    let (status, len, serial) = bench.ask(GET_ID, 0, &[], 20);
    assert_eq!((status, len, &serial[..]), (OK, 21, &b"a-serial-longer-than"[..]));
}

#[test]
fn requests_that_can_not_be_are_answered() {
    let mut bench = Bench::on(InMemory::new(Geometry::of_size(64 * 512)), 1, EVERYTHING);
    let sector = [0; 512];
    let cases: [(u32, u64, &[u8], u32, u8); 14] = [
        (IN, 64, &[], 512, IOERR),
        (IN, 63, &[], 1024, IOERR),
        (IN, u64::MAX, &[], 512, IOERR),
        (IN, u64::MAX / 512, &[], 512, IOERR),
        (IN, 0, &[], 511, IOERR),
        (OUT, 64, &sector, 0, IOERR),
        (OUT, 0, &sector[..100], 0, IOERR),
        (77, 0, &[], 512, UNSUPP),
        (DISCARD, 0, &range(0, 1, 1), 0, UNSUPP),
        (WRITE_ZEROES, 0, &range(0, 1, 2), 0, UNSUPP),
        (WRITE_ZEROES, 0, &range(0, 1 << 22, 0), 0, IOERR),
        (WRITE_ZEROES, 0, &range(u64::MAX, 1, 0), 0, IOERR),
        (DISCARD, 0, &sector[..10], 0, IOERR),
        (DISCARD, 0, &[0; 33 * 16], 0, IOERR),
    ];
    for (number, (kind, at, data, room, status)) in cases.into_iter().enumerate() {
        assert_eq!(bench.status_of(kind, at, data, room), status, "case {number}");
    }
    assert_eq!(bench.device.figures().snapshot().errors, 14);
    assert_eq!(bench.status_of(IN, 63, &[], 512), OK);

    let mut sealed = Bench::on(InMemory::holding(vec![7; 1024], Access::ReadOnly), 1, EVERYTHING);
    assert_eq!(sealed.status_of(OUT, 0, &sector, 0), IOERR);
    assert_eq!(sealed.ask(IN, 0, &[], 512), (OK, 513, vec![7; 512]));
    assert_eq!(sealed.status_of(FLUSH, 0, &[], 0), OK);
}

#[test]
fn failures_of_the_disk_reach_the_driver_and_pass() {
    let plan = FaultPlan::new();
    let disk = Faulty::new(Arc::new(InMemory::new(Geometry::of_size(1 << 20))), plan.clone());
    let mut bench = Bench::on(disk, 1, EVERYTHING);
    plan.inject(Fault::always(DiskOp::Read, DiskErrorKind::Io));
    plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::NoSpace));
    plan.inject(Fault::always(DiskOp::Discard, DiskErrorKind::Unsupported));
    assert_eq!(bench.status_of(IN, 0, &[], 512), IOERR);
    assert_eq!(bench.status_of(FLUSH, 0, &[], 0), IOERR);
    assert_eq!(bench.status_of(DISCARD, 0, &range(0, 8, 0), 0), UNSUPP);
    plan.clear();
    assert_eq!(bench.status_of(IN, 0, &[], 512), OK);
}

#[test]
fn writes_without_a_write_cache_are_flushed() {
    let plan = FaultPlan::new();
    plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
    let disk = Faulty::new(Arc::new(InMemory::new(Geometry::of_size(1 << 20))), plan);
    // A driver that can not flush: every write is flushed for it, so a broken flush shows.
    let mut bench = Bench::on(disk, 1, 0);
    assert_eq!(bench.status_of(OUT, 0, &[0; 512], 0), IOERR);
    bench.driver.start(feature::FLUSH | feature::CONFIG_WCE);
    assert_eq!(bench.driver.device_config(32), [1]);
    assert_eq!(bench.status_of(OUT, 0, &[0; 512], 0), OK);
    bench.driver.set_device_config(32, &[0]);
    assert_eq!(bench.driver.device_config(32), [0]);
    assert_eq!(bench.status_of(OUT, 0, &[0; 512], 0), IOERR);
    assert_eq!(bench.status_of(WRITE_ZEROES, 0, &range(0, 1, 0), 0), IOERR);
}

#[test]
fn whoever_gives_up_the_write_cache_gets_it_flushed() {
    let plan = FaultPlan::new();
    let disk = Faulty::new(Arc::new(InMemory::new(Geometry::of_size(1 << 20))), plan.clone());
    let mut bench = Bench::on(disk, 2, feature::FLUSH | feature::CONFIG_WCE);
    assert_eq!(bench.status_of(OUT, 0, &[0; 512], 0), OK);
    plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
    bench.driver.set_device_config(32, &[0]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while plan.struck() == 0 {
        assert!(Instant::now() < deadline, "nothing was flushed");
        std::thread::yield_now();
    }
    // Once, and not when it is off already, or comes back.
    bench.driver.set_device_config(32, &[0]);
    bench.driver.set_device_config(32, &[1]);
    assert_eq!(bench.status_of(OUT, 0, &[0; 512], 0), OK);
    assert_eq!(plan.struck(), 1);
}

#[test]
fn a_disk_that_grows_is_larger_for_a_running_driver() {
    let disk = Held::new();
    disk.hide(1 << 19);
    let mut bench = Bench::on(disk.clone(), 2, EVERYTHING);
    let capacity = |bench: &Bench| u64::from_le_bytes(bench.driver.device_config(0));
    assert_eq!(capacity(&bench), 1024);
    assert_eq!(bench.status_of(IN, 1024, &[], 512), IOERR);
    let (seen, generation) = (bench.driver.routes().delivered(0), bench.driver.common(0x15, 1));
    disk.hide(0);
    bench.device.resized();
    assert_eq!(
        bench.driver.routes().delivered(0),
        seen + 1,
        "a configuration interrupt"
    );
    assert_ne!(bench.driver.common(0x15, 1), generation);
    assert_eq!(capacity(&bench), 2048);
    assert_eq!(bench.status_of(OUT, 2047, &[3; 512], 0), OK);
    assert_eq!(bench.ask(IN, 2047, &[], 512), (OK, 513, vec![3; 512]));
    // Nobody to be told is no mistake.
    bench.driver.reset();
    bench.device.resized();
}

#[test]
fn one_interrupt_for_as_many_as_the_driver_wants() {
    let mut bench = Bench::on(InMemory::new(Geometry::of_size(1 << 20)), 1, EVENT_IDX);
    assert_eq!(bench.status_of(IN, 0, &[], 512), OK);
    let before = bench.driver.routes().delivered(1);
    bench.driver.ring(0).coalesce(20);
    let last = (0..20).map(|at| bench.send(0, OUT, at, &[1; 512], 0)).last().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    assert!(bench.driver.routes().wait_beyond(1, before, deadline));
    let done = bench.driver.bytes(last.status, 1);
    let used = std::iter::from_fn(|| bench.driver.ring(0).take_used()).count();
    assert_eq!((used, done), (20, vec![OK]));
    assert_eq!(bench.driver.routes().delivered(1), before + 1);
}

#[test]
fn chains_in_tables_of_their_own_may_be_longer_than_the_queue() {
    let disk = InMemory::new(Geometry::of_size(1 << 20));
    let mut bench = Bench::on(disk.clone(), 1, INDIRECT_DESC);
    let header = bench.header(OUT, 8);
    let data = bench.driver.place(&[0x5a; 512 * 200]);
    let status = bench.driver.place(&[0xee]);
    let mut bufs = vec![Buf::Readable(header, 16)];
    bufs.extend((0..200).map(|at| Buf::Readable(data + at * 512, 512)));
    bufs.push(Buf::Writable(status, 1));
    let table = bench.driver.allocate(bufs.len() * 16);
    let head = bench.driver.ring(0).add_indirect(table, &bufs);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0).head, head);
    assert_eq!(bench.driver.bytes(status, 1), [OK]);
    assert!(disk.contents()[8 * 512..208 * 512].iter().all(|&byte| byte == 0x5a));
    assert_eq!(disk.contents()[208 * 512], 0);
}

#[test]
fn requests_overtake_each_other() {
    let disk = Held::new();
    let mut bench = Bench::on(disk.clone(), 1, EVENT_IDX);
    let held = bench.send(0, IN, 0, &[], 512);
    let quick = bench.send(0, IN, 1, &[], 512);
    assert_eq!(bench.driver.wait_used(0).head, quick.head);
    disk.bell.ring();
    assert_eq!(bench.driver.wait_used(0).head, held.head);
}

#[test]
fn a_full_queue_is_served_in_one_go() {
    let mut bench = Bench::on(InMemory::new(Geometry::of_size(1 << 20)), 1, EVENT_IDX | INDIRECT_DESC);
    for round in 0..20_u8 {
        let mut heads: Vec<u16> = (0..40)
            .map(|at| bench.send(0, OUT, at, &[round; 512], 0).head)
            .collect();
        let mut used: Vec<u16> = (0..40).map(|_| bench.driver.wait_used(0).head).collect();
        heads.sort_unstable();
        used.sort_unstable();
        assert_eq!(heads, used);
    }
}

#[test]
fn pause_drains_holds_and_resume_goes_on() {
    let disk = Held::new();
    let mut bench = Bench::on(disk.clone(), 2, EVENT_IDX);
    let held = bench.send(0, IN, 0, &[], 512);
    // The quick one shows that the worker has begun the first.
    let quick = bench.send(0, IN, 1, &[], 512);
    assert_eq!(bench.driver.wait_used(0).head, quick.head);
    let transport = Arc::clone(bench.driver.transport());
    let draining = transport.pause();
    let waiter = std::thread::spawn(move || draining.wait());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiter.is_finished(), "a request is in flight");
    disk.bell.ring();
    waiter.join().unwrap();
    assert_eq!(bench.driver.ring(0).take_used().map(|used| used.head), Some(held.head));

    let later = bench.send(0, OUT, 5, &[1; 512], 0);
    let other = bench.send(1, OUT, 6, &[1; 512], 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(
        (bench.driver.ring(0).take_used(), bench.driver.ring(1).take_used()),
        (None, None)
    );
    assert_eq!(disk.disk.contents()[5 * 512], 0);
    transport.resume();
    assert_eq!(bench.driver.wait_used(0).head, later.head);
    assert_eq!(bench.driver.wait_used(1).head, other.head);
    // Pausing twice, or when idle, is no different.
    transport.pause().wait();
    transport.pause().wait();
    transport.resume();
    assert_eq!(bench.status_of(IN, 5, &[], 512), OK);
}

#[test]
fn reset_in_the_middle_of_everything_and_again() {
    let disk = InMemory::new(Geometry::of_size(1 << 20));
    let mut bench = Bench::on(disk.clone(), 2, EVENT_IDX);
    for round in 0..10_u8 {
        for sector in 0..30 {
            bench.send(u16::from(round % 2), OUT, sector, &[round; 512], 0);
        }
        bench.driver.reset();
        let contents = disk.contents();
        std::thread::sleep(Duration::from_millis(1));
        assert!(contents == disk.contents(), "nothing is written after a reset");
        bench.driver.start(EVENT_IDX);
    }
    assert_eq!(bench.status_of(OUT, 3, &[0x77; 512], 0), OK);
    assert_eq!(disk.contents()[3 * 512], 0x77);
    bench.driver.transport().pause().wait();
    bench.driver.transport().reset();
    bench.driver.transport().resume();
    bench.driver.start(0);
    assert_eq!(bench.ask(IN, 3, &[], 512), (OK, 513, vec![0x77; 512]));
}

#[test]
fn chains_without_room_for_an_answer_stop_the_device() {
    let mut bench = Bench::on(InMemory::new(Geometry::of_size(1 << 20)), 1, 0);
    let header = bench.header(IN, 0);
    for bufs in [
        vec![Buf::Readable(header, 16)],
        vec![Buf::Writable(header, 16)],
        vec![Buf::Readable(header, 15), Buf::Writable(header, 1)],
        vec![Buf::Readable(1 << 40, 16), Buf::Writable(header, 1)],
        vec![
            Buf::Readable(header, 16),
            Buf::Writable(u64::MAX - 4, 512),
            Buf::Writable(header, 1),
        ],
    ] {
        bench.driver.submit(0, &bufs);
        bench.driver.wait_needs_reset();
        bench.driver.start(0);
        assert_eq!(bench.status_of(IN, 0, &[], 512), OK);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the descriptors say, every chain is either answered or the device asks for a reset; and then it works again.
    #[test]
    fn any_chain_is_answered_or_ends_in_a_reset(
        descriptors in proptest::collection::vec((0..0x11_0000_u64, 0..2048_u32, 0..8_u16, 0..18_u16), 16),
        heads in proptest::collection::vec(0..17_u16, 1..8),
    ) {
        let mut bench = Bench::on(InMemory::new(Geometry::of_size(1 << 20)), 1, 0);
        for (index, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            bench.driver.ring(0).write_descriptor(index, 0x10_0000 + (gpa & 0xffff), len, (flags, next));
        }
        bench.driver.memory().write_slice(&[0; 0x1_0000], GuestAddress(0x10_0000)).unwrap();
        let count = heads.len();
        for head in heads {
            bench.driver.ring(0).offer(head);
        }
        bench.driver.kick(0);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut answered = 0;
        while answered < count && bench.driver.status() & 64 == 0 {
            prop_assert!(Instant::now() < deadline);
            match bench.driver.ring(0).take_used() {
                Some(_) => answered += 1,
                None => std::thread::yield_now(),
            }
        }
        bench.driver.start(0);
        prop_assert_eq!(bench.status_of(IN, 0, &[], 512), OK);
    }
}

#[test]
fn goes_on_in_another_machine() {
    let disk = InMemory::new(Geometry::of_size(1 << 20));
    for wanted in [EVENT_IDX | feature::CONFIG_WCE | feature::FLUSH, 0] {
        let mut bench = Bench::on(disk.clone(), 2, wanted);
        let fresh = || Arc::new(Blk::new(Arc::new(disk.clone()), options(2)));
        bench.driver.set_device_config(32, &[0]);
        assert_eq!(bench.status_of(OUT, 3, &[3; 512], 0), OK);
        let transport = Arc::clone(bench.driver.transport());
        transport.pause().wait();
        device::conformance::check(&*transport, || bench.driver.twin(fresh()));
        // Asked for while it is paused, done in the next machine.
        let waiting = bench.send(1, IN, 3, &[], 512);
        let mode = bench.driver.device_config::<1>(32);
        bench.driver.move_to(fresh());
        assert_eq!(bench.driver.device_config::<1>(32), mode);
        assert_eq!(bench.driver.wait_used(1).head, waiting.head);
        assert_eq!(bench.driver.bytes(waiting.data, 512), [3; 512]);
        for round in 0..20_u8 {
            bench.driver.move_to(fresh());
            assert_eq!(bench.status_of(OUT, 7, &[round; 512], 0), OK);
            assert_eq!(bench.ask(IN, 7, &[], 512).2, [round; 512]);
        }
    }
}
