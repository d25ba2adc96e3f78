//! Drivers that mean harm.

use std::time::{Duration, Instant};

use guestmem::{Bytes, GuestAddress};
use proptest::prelude::*;

use super::*;

#[test]
fn chains_without_room_for_an_answer_stop_the_device() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    let header = bench.driver.place(&Bench::header(first().bytes(), 1, &[0; 6]));
    let room = bench.driver.allocate(4096);
    for (queue, bufs) in [
        (2, vec![Buf::Readable(header, 51)]),
        (2, vec![Buf::Writable(room, 108)]),
        (2, vec![Buf::Readable(header, 50), Buf::Writable(room, 108)]),
        (2, vec![Buf::Readable(header, 51), Buf::Writable(room, 107)]),
        (2, vec![Buf::Readable(1 << 40, 51), Buf::Writable(room, 108)]),
        (0, vec![Buf::Readable(header, 24)]),
        (0, vec![Buf::Readable(room, 23), Buf::Writable(room, 1)]),
        (0, vec![Buf::Writable(room, 1)]),
    ] {
        bench.driver.submit(queue, &bufs);
        bench.driver.wait_needs_reset();
        bench.driver.start(EVERYTHING);
        assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    }
    // Events need room as well, once there is one.
    bench.driver.submit(1, &[Buf::Writable(room, 15)]);
    bench.scsi.resized(first()).unwrap();
    bench.driver.wait_needs_reset();
}

#[test]
fn other_sizes_of_cdbs_and_sense_data_are_kept_to() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    bench.driver.set_device_config(24, &16_u32.to_le_bytes());
    bench.driver.set_device_config(20, &4_u32.to_le_bytes());
    let mut header = Bench::header(first().bytes(), 1, &[0x2a, 0, 0, 0, 255, 255, 0, 0, 1, 0]);
    header.truncate(19 + 16);
    let (header, room) = (bench.driver.place(&header), bench.driver.place(&[0xee; 32]));
    bench
        .driver
        .submit(2, &[Buf::Readable(header, 35), Buf::Writable(room, 16)]);
    bench.driver.wait_used(2);
    let answer = bench.driver.bytes(room, 17);
    assert_eq!(answer, [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xf0, 0, 5, 0, 0xee]);
}

fn cdbs() -> impl Strategy<Value = Vec<u8>> {
    // Half of them begin as a command that exists.
    let opcodes: Vec<u8> = super::super::commands::ENTRIES
        .iter()
        .map(super::super::commands::Entry::opcode)
        .collect();
    let known = proptest::sample::select(opcodes);
    let bytes = proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 1..12_u8, 1 => any::<u8>()], 16);
    prop_oneof![
        bytes.clone(),
        (known, bytes).prop_map(|(opcode, mut bytes)| {
            bytes[0] = opcode;
            bytes
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in a CDB and beside it, it is answered, with a residual that can be.
    #[test]
    fn any_cdb_is_answered(
        cdbs in proptest::collection::vec((cdbs(), 0..2_u16, 0..3_usize, proptest::collection::vec(any::<u8>(), 0..64)), 24),
        sizes in proptest::collection::vec(0..5000_u32, 24),
    ) {
        let mut bench = Bench::on(blank(), medium(Medium::Disk));
        bench.scsi.attach(Lun::new(0, 1).unwrap(), Arc::new(blank()), medium(Medium::CdRom)).unwrap();
        for ((cdb, unit, kind, mut data), size) in cdbs.into_iter().zip(sizes) {
            let lun = Lun::new(0, unit).unwrap().bytes();
            data.resize(size as usize, 0);
            let (out, room): (&[u8], u32) = match kind {
                0 => (&[], 0),
                1 => (&data, 0),
                _ => (&[], size),
            };
            let answer = bench.exchange(lun, &cdb, out, room);
            prop_assert!(answer.code <= 9 && [GOOD, CHECK].contains(&answer.status), "{:x?}: {:x?}", cdb, answer);
            let total = u32::try_from(out.len()).unwrap() + room;
            prop_assert!(answer.residual <= total);
            let moved = (total - answer.residual) as usize;
            prop_assert!(kind != 2 || answer.data[moved..].iter().all(|&byte| byte == 0xee), "{:x?}", cdb);
            prop_assert_eq!(answer.status == CHECK, !answer.sense.is_empty());
        }
    }

    /// Whatever the descriptors say on any queue, every chain is answered, kept for an event, or the device asks for a
    /// reset; and then it works again.
    #[test]
    fn any_chain_is_answered_or_ends_in_a_reset(
        descriptors in proptest::collection::vec((0..0x11_0000_u64, 0..2048_u32, 0..8_u16, 0..18_u16), 16),
        heads in proptest::collection::vec(0..17_u16, 1..8),
        queue in 0..3_u16,
        header in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let mut bench = Bench::on(blank(), medium(Medium::Disk));
        for (index, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            bench.driver.ring(queue).write_descriptor(index, 0x10_0000 + (gpa & 0xffff), len, (flags, next));
        }
        bench.driver.memory().write_slice(&[0; 0x1_0000], GuestAddress(0x10_0000)).unwrap();
        bench.driver.memory().write_slice(&header, GuestAddress(0x10_0000)).unwrap();
        let count = heads.len();
        for head in heads {
            bench.driver.ring(queue).offer(head);
        }
        bench.driver.kick(queue);
        bench.scsi.resized(first()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = if queue == 1 { 1 } else { count };
        let mut answered = 0;
        while answered < wanted && bench.driver.status() & 64 == 0 {
            prop_assert!(Instant::now() < deadline);
            match bench.driver.ring(queue).take_used() {
                Some(_) => answered += 1,
                None => std::thread::yield_now(),
            }
        }
        bench.driver.start(EVERYTHING);
        prop_assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
        prop_assert_eq!(bench.ask(first(), &[0; 6]).status, GOOD);
    }
}
