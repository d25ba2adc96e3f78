//! Data to and from disks.

use disk::{Access, Discard, DiskErrorKind, DiskOp, Fault, FaultPlan, Faulty};

use super::*;
use crate::test_disks::Held;

fn pattern(len: usize) -> Vec<u8> {
    (0..251).cycle().take(len).collect()
}

#[test]
fn capacity_is_told_and_growth_is_announced() {
    let disk = Held::new();
    disk.hide(1 << 19);
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    assert_eq!(
        bench.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8),
        [0, 0, 3, 0xff, 0, 0, 2, 0]
    );
    let long = bench.get(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32);
    assert_eq!(long[..16], [0, 0, 0, 0, 0, 0, 3, 0xff, 0, 0, 2, 0, 0, 3, 0x80, 0]);
    let event = bench.driver.allocate(16);
    bench.driver.submit(1, &[Buf::Writable(event, 16)]);
    disk.hide(0);
    bench.scsi.resized(first()).unwrap();
    assert_eq!(bench.driver.wait_used(1).len, 16);
    assert_eq!(
        bench.driver.bytes(event, 16),
        [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x2a, 9, 0, 0]
    );
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x2a, 9));
    assert_eq!(bench.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)[..4], [0, 0, 7, 0xff]);
    bench.put(&[0x2a, 0, 0, 0, 7, 0xff, 0, 0, 1, 0], &[1; 512]).good();
    assert!(bench.scsi.resized(Lun::new(0, 1).unwrap()).is_err());
}

#[test]
fn what_was_written_is_read_by_every_length_of_command() {
    let disk = blank();
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    let data = pattern(8 * 512);
    let writes: [&[u8]; 4] = [
        &[0x0a, 0, 0, 9, 8, 0],
        &[0x2a, 0, 0, 0, 0, 19, 0, 0, 8, 0],
        &[0xaa, 8, 0, 0, 0, 29, 0, 0, 0, 8, 0, 0],
        &[0x8a, 0x10, 0, 0, 0, 0, 0, 0, 0, 39, 0, 0, 0, 8, 0, 0],
    ];
    for (write, at) in writes.iter().zip([9, 19, 29, 39]) {
        let answer = bench.put(write, &data);
        assert_eq!((answer.residual, answer.used), (0, 12 + 18));
        answer.good();
        assert!(disk.contents()[at * 512..][..data.len()] == data);
        for read in [0x08, 0x28, 0xa8, 0x88] {
            let mut cdb = write.to_vec();
            cdb[0] = read;
            let at = u8::try_from(at).unwrap();
            let cdb: &[u8] = match read {
                0x08 => &[8, 0, 0, at, 8, 0],
                0x28 => &[0x28, 8, 0, 0, 0, at, 0, 0, 8, 0],
                0xa8 => &[0xa8, 0, 0, 0, 0, at, 0, 0, 0, 8, 0, 0],
                _ => &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, at, 0, 0, 0, 8, 0, 0],
            };
            let answer = bench.exchange(first().bytes(), cdb, &[], 8 * 512);
            assert_eq!(answer.used, ANSWER + 8 * 512);
            assert!(answer.good() == data);
        }
    }
    let figures = bench.scsi.figures(first()).unwrap().snapshot();
    assert_eq!((figures.reads.latency.count, figures.reads.bytes), (16, 16 * 4096));
    assert_eq!((figures.writes.latency.count, figures.writes.bytes), (4, 4 * 4096));
    assert_eq!(figures.errors, 1, "the attention at the start");
}

#[test]
fn residuals_overruns_and_ends_of_the_disk() {
    let disk = blank();
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    let answer = bench.exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 2000);
    assert_eq!((answer.residual, answer.used), (2000 - 512, ANSWER + 512));
    assert!(answer.good()[512..].iter().all(|&byte| byte == 0xee));
    let answer = bench.put(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 600]);
    assert_eq!((answer.code, answer.status, answer.residual), (0, GOOD, 88));
    assert_eq!(disk.contents()[511..513], [1, 0]);
    // Less room than data, or room on the wrong side, or on both: nothing is moved.
    assert_eq!(
        bench
            .exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[], 1023)
            .code,
        1
    );
    assert_eq!(bench.put(&[0x2a, 0, 0, 0, 0, 9, 0, 0, 2, 0], &[1; 1023]).code, 1);
    assert_eq!(bench.put(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]).code, 1);
    let both = bench.exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512], 512);
    assert_eq!((both.code, both.residual), (9, 1024));
    assert_eq!(disk.contents()[9 * 512], 0);
    assert_eq!(bench.scsi.counters().snapshot().overruns, 4);
    // No blocks is no error, anywhere on the disk.
    bench.ask(first(), &[0x28, 0, 0, 0, 8, 0, 0, 0, 0, 0]).good();
    for cdb in [
        &[0x28, 0, 0, 0, 8, 1, 0, 0, 0, 0][..],
        &[0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0],
        &[0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1, 0, 0],
        &[0x35, 0, 0, 0, 8, 0, 0, 0, 1, 0],
        &[0x2f, 0, 0, 0, 7, 0xff, 0, 0, 2, 0],
        &[0x93, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0],
    ] {
        assert_eq!(
            bench.exchange(first().bytes(), cdb, &[], 512).sense(),
            (ILLEGAL, 0x21, 0),
            "{cdb:x?}"
        );
    }
    let big = InMemory::new(Geometry::of_size(64 << 20));
    let mut bench = Bench::on(big, medium(Medium::Disk));
    let answer = bench.ask(first(), &[0x28 | 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]);
    assert_eq!((answer.sense(), answer.field()), ((ILLEGAL, 0x24, 0), (true, 6, None)));
}

#[test]
fn large_sectors_are_the_unit_of_everything() {
    let disk = InMemory::new(Geometry {
        logical_sector_bytes: 4096,
        ..Geometry::of_size(1 << 20)
    });
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    assert_eq!(
        bench.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8),
        [0, 0, 0, 255, 0, 0, 0x10, 0]
    );
    bench.put(&[0x2a, 0, 0, 0, 0, 255, 0, 0, 1, 0], &pattern(4096)).good();
    assert!(disk.contents()[(1 << 20) - 4096..] == pattern(4096));
    bench.put(&[0x41, 0, 0, 0, 0, 254, 0, 0, 2, 0], &[3; 4096]).good();
    assert!(disk.contents()[(1 << 20) - 8192..].iter().all(|&byte| byte == 3));
}

#[test]
fn unmaps_what_it_is_told_or_nothing() {
    let disk = InMemory::holding(vec![0xff; 1 << 20], Access::ReadWrite);
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    let list = |ranges: &[(u64, u32)]| {
        let length = u16::try_from(ranges.len() * 16).unwrap();
        let mut list = [&(length + 6).to_be_bytes()[..], &length.to_be_bytes(), &[0; 4]].concat();
        for (lba, blocks) in ranges {
            list.extend([&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat());
        }
        list
    };
    let mut unmap = |list: &[u8]| {
        let [high, low] = u16::try_from(list.len()).unwrap().to_be_bytes();
        bench.put(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
    };
    unmap(&list(&[(8, 8), (24, 0), (32, 16)])).good();
    let contents = disk.contents();
    assert!(contents[8 * 512..16 * 512].iter().all(|&byte| byte == 0));
    assert!(contents[32 * 512..48 * 512].iter().all(|&byte| byte == 0));
    assert_eq!(
        (contents[8 * 512 - 1], contents[16 * 512], contents[48 * 512]),
        (255, 255, 255)
    );
    assert_eq!(unmap(&list(&[(0, 1), (2048, 1)])).sense(), (ILLEGAL, 0x21, 0));
    assert_eq!(disk.contents()[0], 255, "all or nothing");
    assert_eq!(unmap(&list(&[(u64::MAX, 1)])).sense(), (ILLEGAL, 0x21, 0));
    assert_eq!(unmap(&[0; 7]).sense(), (ILLEGAL, 0x1a, 0));
    assert_eq!(unmap(&list(&[(0, 1); 256])).sense(), (ILLEGAL, 0x26, 0));
    unmap(&[]).good();
    unmap(&list(&[])).good();
    let figures = bench.scsi.figures(first()).unwrap().snapshot();
    assert_eq!((figures.trims.bytes, figures.trims.latency.count), (24 * 512, 7));

    let keeps = InMemory::new(Geometry {
        discard: Discard::Unsupported,
        ..Geometry::of_size(1 << 20)
    });
    let mut bench = Bench::on(keeps, medium(Medium::Disk));
    assert_eq!(
        bench.put(&[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[0; 8]).sense(),
        (ILLEGAL, 0x20, 0)
    );
    let answer = bench.put(&[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[0; 512]);
    assert_eq!(
        (answer.sense(), answer.field()),
        ((ILLEGAL, 0x24, 0), (true, 1, Some(3)))
    );
    assert_eq!(bench.get(&[0x12, 1, 0xb2, 0, 255, 0], 255), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
}

#[test]
fn writes_the_same_everywhere() {
    let disk = InMemory::holding(vec![0xff; 1 << 20], Access::ReadWrite);
    let mut bench = Bench::on(disk.clone(), medium(Medium::Disk));
    // Longer than what is written at once.
    let block = pattern(512);
    bench
        .put(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1, 1, 0, 0], &block)
        .good();
    let contents = disk.contents();
    assert!(contents[3 * 512..260 * 512].chunks(512).all(|one| one == block));
    assert_eq!((contents[3 * 512 - 1], contents[260 * 512]), (255, 255));
    bench.put(&[0x41, 8, 0, 0, 0, 3, 0, 0, 2, 0], &[0; 512]).good();
    assert!(disk.contents()[3 * 512..5 * 512].iter().all(|&byte| byte == 0));
    bench
        .put(&[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0], &[])
        .good();
    assert!(disk.contents()[5 * 512..6 * 512].iter().all(|&byte| byte == 0));
    for (cdb, byte, bit) in [
        ([0x41, 0, 0, 0, 0, 3, 0, 0, 0, 0], 7, None),
        ([0x41, 0x10, 0, 0, 0, 3, 0, 0, 1, 0], 1, Some(4)),
        ([0x41, 0x20, 0, 0, 0, 3, 0, 0, 1, 0], 1, Some(7)),
    ] {
        let answer = bench.put(&cdb, &[0; 512]);
        assert_eq!(
            (answer.sense(), answer.field()),
            ((ILLEGAL, 0x24, 0), (true, byte, bit))
        );
    }
    assert_eq!(bench.put(&[0x41, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[0; 511]).code, 1);
}

#[test]
fn verifies_by_reading() {
    let plan = FaultPlan::new();
    let mut bench = Bench::on(Faulty::new(Arc::new(blank()), plan.clone()), medium(Medium::Disk));
    // More than one piece, and a rest.
    bench.ask(first(), &[0x2f, 0, 0, 0, 0, 1, 0, 1, 2, 0]).good();
    bench
        .ask(first(), &[0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0])
        .good();
    plan.inject(Fault::always(DiskOp::Read, DiskErrorKind::Io));
    assert_eq!(
        bench.ask(first(), &[0x2f, 0, 0, 0, 0, 1, 0, 0, 2, 0]).sense(),
        (3, 0x11, 0)
    );
    let answer = bench.ask(first(), &[0x2f, 2, 0, 0, 0, 1, 0, 0, 2, 0]);
    assert_eq!(
        (answer.sense(), answer.field()),
        ((ILLEGAL, 0x24, 0), (true, 1, Some(2)))
    );
}

#[test]
fn failures_of_the_disk_are_told_apart() {
    let plan = FaultPlan::new();
    let mut bench = Bench::on(Faulty::new(Arc::new(blank()), plan.clone()), medium(Medium::Disk));
    for (kind, read, write) in [
        (DiskErrorKind::Io, (3, 0x11, 0), (3, 0x0c, 0)),
        (DiskErrorKind::NoSpace, (7, 0x27, 7), (7, 0x27, 7)),
        (DiskErrorKind::Corrupt, (3, 0x31, 0), (3, 0x31, 0)),
        (DiskErrorKind::Cancelled, (0xb, 0, 0), (0xb, 0, 0)),
    ] {
        plan.inject(Fault::always(DiskOp::Read, kind));
        plan.inject(Fault::always(DiskOp::Write, kind));
        let answer = bench.exchange(first().bytes(), &[0x28, 0, 0, 0, 1, 2, 0, 0, 1, 0], &[], 512);
        assert_eq!((answer.sense(), answer.residual), (read, 512));
        assert_eq!(
            (answer.sense[0], &answer.sense[3..7]),
            (0xf0, &[0, 0, 1, 2][..]),
            "the block"
        );
        assert_eq!(bench.put(&[0x2a, 0, 0, 0, 1, 2, 0, 0, 1, 0], &[1; 512]).sense(), write);
        plan.clear();
    }
    plan.inject(Fault::always(DiskOp::Open, DiskErrorKind::Io));
    let other = Lun::new(1, 0).unwrap();
    let broken = Faulty::new(Arc::new(blank()), plan.clone());
    bench
        .scsi
        .attach(other, Arc::new(broken), medium(Medium::Disk))
        .unwrap();
    assert_eq!(bench.ask(other, &[0; 6]).sense(), (4, 0x44, 0));
    plan.clear();
    assert_eq!(bench.ask(other, &[0; 6]).sense(), (ATTENTION, 0x29, 0));
}

#[test]
fn what_must_be_durable_is_flushed() {
    let plan = FaultPlan::new();
    let mut bench = Bench::on(Faulty::new(Arc::new(blank()), plan.clone()), medium(Medium::Disk));
    plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
    let failed = (3, 0x0c, 0);
    bench.put(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[1; 512]).good();
    assert_eq!(
        bench.put(&[0x2a, 8, 0, 0, 0, 1, 0, 0, 1, 0], &[1; 512]).sense(),
        failed,
        "FUA"
    );
    let fua_read = bench.exchange(first().bytes(), &[0x28, 8, 0, 0, 0, 1, 0, 0, 1, 0], &[], 512);
    assert_eq!(fua_read.sense(), failed);
    assert_eq!(bench.ask(first(), &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).sense(), failed);
    assert_eq!(
        bench
            .ask(first(), &[0x91, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            .sense(),
        failed
    );
    assert_eq!(bench.ask(first(), &[0x1b, 0, 0, 0, 0, 0]).sense(), failed, "stop");
    let mut page = vec![0; 24];
    (page[4], page[5]) = (8, 18);
    assert_eq!(
        bench.put(&[0x15, 0x10, 0, 0, 24, 0], &page).sense(),
        failed,
        "cache off"
    );
    assert_eq!(bench.put(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[1; 512]).sense(), failed);
    assert_eq!(bench.put(&[0x41, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[0; 512]).sense(), failed);
    plan.clear();
    bench.put(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[1; 512]).good();
    bench.driver.start(EVERYTHING);
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    assert_eq!(bench.get(&[0x1a, 8, 8, 0, 255, 0], 255)[6], 4, "on again after a reset");
}

#[test]
fn a_read_only_disk_says_so() {
    let mut bench = Bench::on(
        InMemory::holding(vec![7; 1 << 16], Access::ReadOnly),
        medium(Medium::Disk),
    );
    assert_eq!(
        bench.get(&[0x1a, 8, 8, 0, 255, 0], 255)[..7],
        [23, 0, 0x90, 0, 8, 18, 0]
    );
    for cdb in [
        &[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0][..],
        &[0x41, 0, 0, 0, 0, 1, 0, 0, 1, 0],
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0],
    ] {
        assert_eq!(bench.put(cdb, &[0; 512]).sense(), (7, 0x27, 0));
    }
    assert_eq!(bench.get(&[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], 512), [7; 512]);
    bench.ask(first(), &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).good();
}

#[test]
fn stops_and_starts() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    bench.ask(first(), &[0x1b, 1, 0, 0, 0, 0]).good();
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (2, 4, 2));
    assert_eq!(
        bench
            .exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512)
            .sense(),
        (2, 4, 2)
    );
    bench.get(&[0x12, 0, 0, 0, 36, 0], 36);
    bench.ask(first(), &[0x1b, 0, 0, 0, 1, 0]).good();
    bench.ask(first(), &[0; 6]).good();
    let answer = bench.ask(first(), &[0x1b, 0, 0, 0, 0x10, 0]);
    assert_eq!(
        (answer.sense(), answer.field()),
        ((ILLEGAL, 0x24, 0), (true, 4, Some(7)))
    );
}
