//! Tasks that are managed, and units that come and go.

use std::time::Duration;

use device::Device;
use virtio::mock::Used;

use super::super::ScsiError;
use super::*;
use crate::test_disks::Held;

const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const CLEAR_ACA: u32 = 2;
const NEXUS_RESET: u32 = 4;
const UNIT_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;
const QUERY_TASK_SET: u32 = 7;

const READ_FIRST: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A host with two queues, a disk that holds back reads of its first block, and a driver that has heard of it.
fn held() -> (Bench, Held) {
    let disk = Held::new();
    let mut bench = Bench::empty(2);
    bench
        .scsi
        .attach(first(), Arc::new(disk.clone()), medium(Medium::Disk))
        .unwrap();
    bench.driver.start(EVERYTHING);
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    (bench, disk)
}

impl Bench {
    /// Begins a read that is held back, on the second request queue.
    fn hang(&mut self, tag: u64) -> Sent {
        self.send_raw(3, &Self::header(first().bytes(), tag, &READ_FIRST), &[], 512)
    }

    /// Asks for a function without waiting for the answer; where that comes.
    fn begin_manage(&mut self, function: u32, lun: Lun, tag: u64) -> u64 {
        let bytes = [&[0; 4][..], &function.to_le_bytes(), &lun.bytes(), &tag.to_le_bytes()].concat();
        let readable = self.driver.place(&bytes);
        let answer = self.driver.place(&[0xee]);
        self.driver
            .submit(0, &[Buf::Readable(readable, 24), Buf::Writable(answer, 1)]);
        answer
    }

    fn is_used(&mut self, queue: u16) -> Option<Used> {
        self.driver.ring(queue).take_used()
    }
}

#[test]
fn a_task_is_found_and_aborted_when_it_has_ended() {
    let (mut bench, disk) = held();
    let sent = bench.hang(77);
    disk.wait_begun(1);
    assert_eq!(bench.manage(QUERY_TASK, first(), 77), 10);
    assert_eq!(bench.manage(QUERY_TASK, first(), 78), 0);
    assert_eq!(bench.manage(QUERY_TASK_SET, first(), 0), 10);
    assert_eq!(bench.manage(ABORT_TASK, first(), 78), 0, "no such task: it has ended");
    let code = bench.begin_manage(ABORT_TASK, first(), 77);
    assert_eq!(bench.manage(QUERY_TASK, first(), 77), 10, "looked at after the abort");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(
        bench.is_used(0),
        None,
        "the disk may still write into the guest's memory"
    );
    disk.bell.ring();
    bench.driver.wait_used(0);
    assert_eq!(bench.driver.bytes(code, 1), [0]);
    let used = bench.is_used(3).expect("given back before the function is answered");
    assert_eq!(used.head, sent.head);
    let answer = bench.answer_of(&sent, used);
    assert_eq!((answer.code, answer.residual), (2, 512));
    assert_eq!(bench.manage(QUERY_TASK, first(), 77), 0);
    bench.ask(first(), &[0; 6]).good();
    let counters = bench.scsi.counters().snapshot();
    assert_eq!((counters.aborts, counters.managements), (1, 7));
}

#[test]
fn no_task_begins_after_its_set_was_aborted() {
    let (mut bench, disk) = held();
    let at = 9 * 512;
    for round in 1..=50 {
        // Made available without a kick: a worker that sleeps learns of it from the function.
        let cdb = [0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0];
        let header = bench.driver.place(&Bench::header(first().bytes(), 5, &cdb));
        let data = bench.driver.place(&[round; 512]);
        let answer = bench.driver.place(&[0xee; ANSWER as usize]);
        let before = disk.disk.contents()[at];
        let bufs = [
            Buf::Readable(header, 51),
            Buf::Readable(data, 512),
            Buf::Writable(answer, ANSWER),
        ];
        bench.driver.ring(3).add(&bufs);
        assert_eq!(bench.manage(ABORT_TASK_SET, first(), 0), 0);
        assert!(bench.is_used(3).is_some(), "round {round}");
        // It was done before, or it was aborted and never done.
        let code = bench.driver.bytes(answer + 11, 1)[0];
        let expected = if code == 0 { round } else { before };
        assert!([0, 2].contains(&code));
        assert_eq!(disk.disk.contents()[at], expected, "round {round}");
    }
}

#[test]
fn resets_end_tasks_and_are_told_of() {
    let (mut bench, disk) = held();
    let other = Lun::new(0, 5).unwrap();
    bench
        .scsi
        .attach(other, Arc::new(blank()), medium(Medium::Disk))
        .unwrap();
    assert_eq!(bench.ask(other, &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x3f, 0x0e));
    for (function, others, count) in [(UNIT_RESET, false, 1), (NEXUS_RESET, true, 2)] {
        bench.ask(first(), &[0x1b, 0, 0, 0, 0, 0]).good();
        bench.ask(first(), &[0x1b, 0, 0, 0, 1, 0]).good();
        let sent = bench.hang(1);
        disk.wait_begun(count);
        let code = bench.begin_manage(function, first(), 0);
        assert_eq!(bench.manage(QUERY_TASK, first(), 1), 10, "looked at after the reset");
        disk.bell.ring();
        bench.driver.wait_used(0);
        assert_eq!(bench.driver.bytes(code, 1), [0]);
        let used = bench.is_used(3).unwrap();
        assert_eq!(bench.answer_of(&sent, used).code, 4);
        assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 3));
        bench.ask(first(), &[0; 6]).good();
        let answer = bench.ask(other, &[0; 6]);
        assert_eq!(answer.status == CHECK, others, "{answer:x?}");
    }
}

#[test]
fn functions_for_nobody_and_unknown_ones_are_refused() {
    let (mut bench, _disk) = held();
    assert_eq!(bench.manage(CLEAR_ACA, first(), 0), 11);
    assert_eq!(bench.manage(99, first(), 0), 11);
    assert_eq!(bench.manage(UNIT_RESET, Lun::new(0, 1).unwrap(), 0), 12);
    assert_eq!(bench.manage(UNIT_RESET, Lun::new(1, 0).unwrap(), 0), 3);
    assert_eq!(bench.manage(NEXUS_RESET, Lun::new(0, 9).unwrap(), 0), 0);
    let odd: [&[u8]; 4] = [&[0; 4], &UNIT_RESET.to_le_bytes(), &[0xff; 8], &[0; 8]];
    assert_eq!(bench.control(&odd, 1), [12]);
    // Notifications: none are there to be had.
    for kind in [1_u32, 2] {
        let words: [&[u8]; 3] = [&kind.to_le_bytes(), &first().bytes(), &[0xff; 4]];
        assert_eq!(bench.control(&words, 5), [0; 5]);
    }
    assert_eq!(bench.control(&[&[9, 0, 0, 0]], 1), [11]);
}

#[test]
fn units_come_and_go_and_the_driver_is_told() {
    let mut bench = Bench::empty(1);
    bench.driver.start(EVERYTHING);
    let lun = Lun::new(3, 300).unwrap();
    let options = || medium(Medium::Disk);
    assert_eq!(bench.ask(lun, &[0; 6]).code, 3);
    bench.scsi.attach(lun, Arc::new(blank()), options()).unwrap();
    assert_eq!(
        bench.scsi.attach(lun, Arc::new(blank()), options()),
        Err(ScsiError::Taken { lun })
    );
    // Told as soon as there is room.
    let event = bench.driver.allocate(32);
    bench.driver.submit(1, &[Buf::Writable(event, 16)]);
    bench.driver.wait_used(1);
    let told = [1, 0, 0, 0, 1, 3, 0x41, 0x2c, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(bench.driver.bytes(event, 16), told);
    assert_eq!(bench.ask(lun, &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    bench.ask(lun, &[0; 6]).good();
    bench.driver.submit(1, &[Buf::Writable(event, 16)]);
    bench.scsi.detach(lun).unwrap().wait();
    bench.driver.wait_used(1);
    assert_eq!(bench.driver.bytes(event + 12, 4), [2, 0, 0, 0]);
    assert_eq!(bench.ask(lun, &[0; 6]).code, 3);
    assert_eq!(bench.scsi.detach(lun).err(), Some(ScsiError::Nobody { lun }));
    assert_eq!(bench.scsi.counters().snapshot().events, 2);
}

#[test]
fn a_driver_without_room_for_events_learns_that_it_missed_some() {
    let mut bench = Bench::empty(1);
    bench.driver.start(EVERYTHING);
    for target in 0..100 {
        let lun = Lun::new(target, 0).unwrap();
        bench.scsi.attach(lun, Arc::new(blank()), medium(Medium::Disk)).unwrap();
    }
    let event = bench.driver.allocate(16);
    for told in 0..64 {
        bench.driver.submit(1, &[Buf::Writable(event, 16)]);
        bench.driver.wait_used(1);
        let bytes = bench.driver.bytes(event, 16);
        assert_eq!(bytes[3], if told == 0 { 0x80 } else { 0 });
        assert_eq!((bytes[0], bytes[5]), (1, told));
    }
    assert_eq!(bench.scsi.counters().snapshot().events_missed, 36);
    // A driver that did not negotiate them is told nothing.
    bench.driver.start(0);
    bench.driver.submit(1, &[Buf::Writable(event, 16)]);
    bench.scsi.detach(first()).unwrap().wait();
    bench.ask(Lun::new(1, 0).unwrap(), &[0; 6]);
    assert_eq!(bench.is_used(1), None);
}

#[test]
fn a_disk_is_left_alone_once_its_detaching_was_waited_for() {
    let (mut bench, disk) = held();
    let sent = bench.hang(1);
    disk.wait_begun(1);
    let draining = bench.scsi.detach(first()).unwrap();
    assert_eq!(bench.ask(first(), &[0; 6]).code, 3, "gone for the guest");
    let waiter = std::thread::spawn(move || draining.wait());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiter.is_finished(), "a command is in flight");
    disk.bell.ring();
    waiter.join().unwrap();
    let used = bench.driver.wait_used(3);
    bench.answer_of(&sent, used).good();
    // Another disk at the same place, with the device paused meanwhile.
    let transport = Arc::clone(bench.driver.transport());
    transport.pause().wait();
    bench
        .scsi
        .attach(first(), Arc::new(blank()), medium(Medium::Disk))
        .unwrap();
    transport.resume();
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    transport.pause().wait();
    bench.scsi.detach(first()).unwrap().wait();
    transport.resume();
    assert_eq!(bench.ask(first(), &[0; 6]).code, 3);
}

#[test]
fn pause_drains_holds_and_resume_goes_on() {
    let (mut bench, disk) = held();
    let sent = bench.hang(1);
    disk.wait_begun(1);
    let transport = Arc::clone(bench.driver.transport());
    let draining = transport.pause();
    let waiter = std::thread::spawn(move || draining.wait());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiter.is_finished());
    disk.bell.ring();
    waiter.join().unwrap();
    let used = bench.is_used(3).unwrap();
    bench.answer_of(&sent, used).good();
    let header = Bench::header(first().bytes(), 2, &[0; 6]);
    let later = bench.send_raw(2, &header, &[], 0);
    let function = bench.begin_manage(QUERY_TASK, first(), 2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((bench.is_used(2), bench.is_used(0)), (None, None));
    transport.resume();
    let used = bench.driver.wait_used(2);
    bench.answer_of(&later, used).good();
    bench.driver.wait_used(0);
    assert!([0, 10].contains(&bench.driver.bytes(function, 1)[0]));
}

#[test]
fn reset_in_the_middle_of_everything_and_again() {
    let disk = blank();
    let mut bench = Bench::empty(2);
    bench
        .scsi
        .attach(first(), Arc::new(disk.clone()), medium(Medium::Disk))
        .unwrap();
    bench.driver.start(EVERYTHING);
    for round in 0..10_u8 {
        for block in 0..30 {
            let cdb = [0x2a, 0, 0, 0, 0, block, 0, 0, 1, 0];
            let header = Bench::header(first().bytes(), block.into(), &cdb);
            bench.send_raw(2 + u16::from(round % 2), &header, &[round; 512], 0);
        }
        bench.begin_manage(ABORT_TASK_SET, first(), 0);
        bench.driver.reset();
        let contents = disk.contents();
        std::thread::sleep(Duration::from_millis(1));
        assert!(contents == disk.contents(), "nothing is written after a reset");
        bench.driver.start(EVERYTHING);
    }
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    bench.ask(first(), &[0; 6]).good();
}

#[test]
fn a_host_goes_on_in_another_machine() {
    let disk = blank();
    let fresh = || {
        let host = Scsi::new(ScsiOptions {
            name: "scsi0".into(),
            request_queues: 1,
            queue_size: 128,
        });
        host.attach(first(), Arc::new(disk.clone()), medium(Medium::Disk))
            .unwrap();
        Arc::new(host)
    };
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    // No room for the event: it is kept. The attention is told with the next command.
    bench.scsi.resized(first()).unwrap();
    let transport = Arc::clone(bench.driver.transport());
    transport.pause().wait();
    device::conformance::check(&*transport, || bench.driver.twin(fresh()));
    let next = fresh();
    bench.driver.move_to(Arc::clone(&next) as _);
    bench.scsi = next;
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x2a, 0x09));
    bench.ask(first(), &[0; 6]).good();
    let room = bench.driver.allocate(16);
    bench.driver.submit(1, &[Buf::Writable(room, 16)]);
    assert_eq!(bench.driver.wait_used(1).len, 16);
    assert_eq!(
        bench.driver.bytes(room, 4),
        3_u32.to_le_bytes(),
        "the event that was kept"
    );
    let empty = bench.driver.twin(Arc::new(Scsi::new(ScsiOptions {
        name: "scsi0".into(),
        request_queues: 1,
        queue_size: 128,
    })));
    bench.driver.transport().pause().wait();
    let mut state = savestate::SavedState::new();
    for section in device::conformance::save(&**bench.driver.transport()) {
        state.add(section).unwrap();
    }
    let error = device::Migrate::load(&*empty, &mut state.into_sections()).unwrap_err();
    assert!(error.to_string().contains("other units"), "{error}");
}
