//! CD-ROM drives.

use disk::Access;

use super::*;

/// Ten blocks and a bit, over sectors of 512.
fn image() -> InMemory {
    let bytes = (0..10 * 4 + 3_u8).flat_map(|sector| [sector; 512]).collect();
    InMemory::holding(bytes, Access::ReadWrite)
}

#[test]
fn a_drive_reads_and_never_writes() {
    let mut bench = Bench::on(image(), medium(Medium::CdRom));
    let standard = bench.get(&[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!(standard[..2], [5, 0x80]);
    assert_eq!(&standard[16..32], b"VIRTUAL CD-ROM  ");
    assert_eq!(bench.get(&[0x12, 1, 0, 0, 255, 0], 255), [5, 0, 0, 3, 0, 0x80, 0x83]);
    assert_eq!(
        bench.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8),
        [0, 0, 0, 9, 0, 0, 8, 0]
    );
    let data = bench.get(&[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0], 2048);
    assert_eq!((data[0], data[2047]), (36, 39));
    let read = bench.exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 10, 0, 0, 1, 0], &[], 2048);
    assert_eq!(read.sense(), (ILLEGAL, 0x21, 0));
    for cdb in [&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0][..], &[0x42], &[0x41], &[0x15, 0x10]] {
        assert_eq!(bench.put(cdb, &[0; 2048]).sense(), (ILLEGAL, 0x20, 0));
    }
    let modes = bench.get(&[0x5a, 8, 0x2a, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!((modes[3], &modes[8..11], modes[14]), (0, &[0x2a, 18, 0x0b][..], 0x29));
    assert_eq!(
        bench.get(&[0x1a, 0, 0x3f, 0, 255, 0], 255)[4..12],
        [0, 0, 0, 10, 0, 0, 8, 0]
    );
}

#[test]
fn tells_its_table_of_contents() {
    let mut bench = Bench::on(image(), medium(Medium::CdRom));
    let mut toc = |flags: u8, format: u8, track: u8, control: u8| {
        let cdb = [0x43, flags, format, 0, 0, 0, track, 0, 64, control];
        bench.exchange(first().bytes(), &cdb, &[], 64)
    };
    let first_track = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let lead_out = [0, 0x14, 0xaa, 0, 0, 0, 0, 10];
    assert_eq!(
        toc(0, 0, 0, 0).good()[..20],
        [&[0, 18, 1, 1][..], &first_track, &lead_out].concat()
    );
    assert_eq!(
        toc(0, 0, 0xaa, 0).good()[..12],
        [&[0, 10, 1, 1][..], &lead_out].concat()
    );
    assert_eq!(toc(2, 0, 1, 0).good()[8..12], [0, 0, 2, 0]);
    // Sessions, asked as it is done now, and as Linux does.
    let session = [&[0, 10, 1, 1][..], &first_track].concat();
    assert_eq!(toc(0, 1, 0, 0).good()[..12], session);
    assert_eq!(toc(0, 0, 0, 0x40).good()[..12], session);
    let raw = toc(2, 2, 1, 0).good();
    assert_eq!(raw[..2], [0, 46]);
    assert_eq!(raw[26..37], [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 0, 2, 10]);
    assert_eq!(toc(0, 0, 2, 0).field(), (true, 6, None));
    assert_eq!(toc(0, 5, 0, 0).field(), (true, 2, Some(3)));
    let disc = bench.get(&[0x51, 0, 0, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!((disc.len(), disc[1], disc[2]), (34, 32, 0x0e));
}

#[test]
fn tells_its_configuration() {
    let mut bench = Bench::on(image(), medium(Medium::CdRom));
    let mut get = |which: u8, first_feature: u8| {
        bench.exchange(
            first().bytes(),
            &[0x46, which, 0, first_feature, 0, 0, 0, 1, 0, 0],
            &[],
            256,
        )
    };
    let all = get(0, 0);
    let (length, all) = (256 - all.residual, all.good());
    assert_eq!(all[..8], [&(length - 4).to_be_bytes()[..], &[0, 0, 0, 8]].concat());
    assert_eq!(all[8..20], [0, 0, 3, 8, 0, 0x10, 0, 0, 0, 8, 1, 0]);
    let one = get(2, 0x10);
    assert_eq!(one.residual, 256 - 8 - 12);
    assert_eq!(one.good()[8..20], [0, 0x10, 1, 8, 0, 0, 8, 0, 0, 1, 0, 0]);
    assert_eq!(get(1, 0x1f).residual, 256 - 8, "not a DVD");
    assert_eq!(get(3, 0).field(), (true, 1, Some(1)));
}

#[test]
fn the_tray_opens_and_closes() {
    let mut bench = Bench::on(image(), medium(Medium::CdRom));
    let events = |bench: &mut Bench| bench.get(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], 8);
    assert_eq!(events(&mut bench), [0, 6, 4, 0x10, 0, 2, 0, 0]);
    bench.ask(first(), &[0x1e, 0, 0, 0, 1, 0]).good();
    let eject = [0x1b, 0, 0, 0, 2, 0];
    assert_eq!(bench.ask(first(), &eject).sense(), (ILLEGAL, 0x53, 2));
    assert_eq!(bench.get(&[0x1a, 8, 0x2a, 0, 255, 0], 255)[10], 0x2b);
    bench.ask(first(), &[0x1e, 0, 0, 0, 0, 0]).good();
    bench.ask(first(), &eject).good();
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (2, 0x3a, 2));
    assert_eq!(
        bench
            .exchange(first().bytes(), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 2048)
            .sense(),
        (2, 0x3a, 2)
    );
    assert_eq!(events(&mut bench), [0, 6, 4, 0x10, 0, 1, 0, 0]);
    bench.ask(first(), &[0x1b, 0, 0, 0, 3, 0]).good();
    assert_eq!(events(&mut bench), [0, 6, 4, 0x10, 2, 2, 0, 0]);
    assert_eq!(events(&mut bench)[4], 0, "once");
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x28, 0));
    bench.ask(first(), &[0; 6]).good();
    // What is out when the machine resets is in again.
    bench.ask(first(), &eject).good();
    bench.driver.start(EVERYTHING);
    assert_eq!(bench.ask(first(), &[0; 6]).sense(), (ATTENTION, 0x29, 0));
    bench.ask(first(), &[0; 6]).good();
    assert_eq!(bench.get(&[0x4a, 1, 0, 0, 2, 0, 0, 0, 8, 0], 8), [0, 2, 0x80, 0x10]);
    let answer = bench.exchange(first().bytes(), &[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0], &[], 8);
    assert_eq!(answer.field(), (true, 1, Some(0)));
}

#[test]
fn large_sectors_can_not_be_a_cd() {
    let disk = InMemory::new(Geometry {
        logical_sector_bytes: 4096,
        ..Geometry::of_size(1 << 20)
    });
    let bench = Bench::empty(1);
    assert!(
        bench
            .scsi
            .attach(first(), Arc::new(disk), medium(Medium::CdRom))
            .is_err()
    );
}
