//! Who answers, and what it says of itself.

use super::*;

#[test]
fn tells_its_limits_in_configuration_space() {
    let mut bench = Bench::empty(4);
    bench.driver.start(EVERYTHING);
    let word = |at| u32::from_le_bytes(bench.driver.device_config(at));
    assert_eq!([word(0), word(4), word(12), word(16)], [4, 126, 128, 16]);
    assert_eq!([word(20), word(24)], [96, 32]);
    assert_eq!(bench.driver.device_config(28), [0, 0, 255, 0, 0xff, 0x3f, 0, 0]);
    for (at, value, then) in [
        (20, 200_u32, 200),
        (20, 5000, 200),
        (24, 16, 16),
        (24, 0, 16),
        (0, 9, 4),
    ] {
        bench.driver.set_device_config(at, &value.to_le_bytes());
        assert_eq!(u32::from_le_bytes(bench.driver.device_config(at)), then);
    }
    bench.driver.reset();
    assert_eq!(u32::from_le_bytes(bench.driver.device_config(20)), 96);
}

#[test]
fn every_address_is_answered_as_it_should_be() {
    let mut bench = Bench::empty(1);
    for (target, unit) in [(0, 1), (0, 300), (7, 0)] {
        let lun = Lun::new(target, unit).unwrap();
        bench.scsi.attach(lun, Arc::new(blank()), medium(Medium::Disk)).unwrap();
    }
    bench.driver.start(EVERYTHING);
    let inquiry = [0x12, 0, 0, 0, 96, 0];
    let list = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let nobody = Lun::new(0, 0).unwrap().bytes();
    // Nobody is home, but the target is.
    let answer = bench.exchange(nobody, &inquiry, &[], 96);
    assert_eq!(answer.residual, 96 - 74);
    assert_eq!(answer.good()[..5], [0x7f, 0, 6, 0x12, 69]);
    assert_eq!(bench.exchange(nobody, &[0; 6], &[], 0).sense(), (ILLEGAL, 0x25, 0));
    let units = [[0, 1, 0, 0, 0, 0, 0, 0], [0x41, 0x2c, 0, 0, 0, 0, 0, 0]].concat();
    let expected = [&[0, 0, 0, 16, 0, 0, 0, 0], &units[..]].concat();
    assert_eq!(bench.exchange(nobody, &list, &[], 256).good()[..24], expected);
    let sense = bench.exchange(nobody, &[3, 0, 0, 0, 18, 0], &[], 18).good();
    assert_eq!((sense[2], sense[12]), (5, 0x25));
    // The well-known unit of a target, and of the whole host.
    assert_eq!(
        bench.exchange([1, 0, 0xc1, 1, 0, 0, 0, 0], &list, &[], 256).good()[..24],
        expected
    );
    let all = bench.exchange([0xc1, 1, 0, 0, 0, 0, 0, 0], &list, &[], 256).good();
    assert_eq!(all[..16], [0, 0, 0, 24, 0, 0, 0, 0, 1, 0, 0x40, 1, 0, 0, 0, 0]);
    assert_eq!(all[24..32], [1, 7, 0x40, 0, 0, 0, 0, 0]);
    let well_known = bench.exchange([1, 7, 0xc1, 1, 0, 0, 0, 0], &inquiry, &[], 96).good();
    assert_eq!(well_known[0], 0x1e);
    // No such target, and no address at all.
    for address in [
        [1, 1, 0x40, 0, 0, 0, 0, 0],
        [1, 1, 0xc1, 1, 0, 0, 0, 0],
        [0; 8],
        [0xff; 8],
    ] {
        let answer = bench.exchange(address, &inquiry, &[], 96);
        assert_eq!((answer.code, answer.residual), (3, 96));
        assert!(answer.data.iter().all(|&byte| byte == 0xee));
    }
    assert_eq!(bench.scsi.counters().snapshot().strays, 4);
}

#[test]
fn a_disk_names_itself() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    let standard = bench.get(&[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!(standard[..8], [0, 0, 6, 0x12, 69, 0, 0, 2]);
    assert_eq!(&standard[8..36], b"KARAT   VIRTUAL DISK    0001");
    let mut page = |page: u8| bench.get(&[0x12, 1, page, 0, 255, 0], 255);
    assert_eq!(page(0x00), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(page(0x80), b"\x00\x80\x00\x07SN-0001");
    let names = page(0x83);
    assert_eq!(names[..4], [0, 0x83, 0, 4 + 15 + 4 + 8]);
    assert_eq!(&names[4..23], b"\x02\x01\x00\x0fKARAT   SN-0001");
    assert_eq!(names[23..27], [1, 3, 0, 8]);
    // Guests have written this down.
    assert_eq!(names[27..], [0x33, 0x15, 0x92, 0xa7, 0x41, 0x2d, 0xcc, 0x07]);
    let limits = page(0xb0);
    assert_eq!(limits.len(), 64);
    assert_eq!(limits[4..8], [1, 0, 0, 8]);
    assert_eq!(limits[8..12], 65536_u32.to_be_bytes());
    assert_eq!(
        limits[20..36],
        [[0, 0x20, 0, 0], [0, 0, 0, 255], [0, 0, 0, 8], [0x80, 0, 0, 0]].concat()
    );
    assert_eq!(limits[36..44], (1_u64 << 21).to_be_bytes());
    assert_eq!(page(0xb1)[..6], [0, 0xb1, 0, 60, 0, 1]);
    assert_eq!(page(0xb2), [0, 0xb2, 0, 4, 0, 0xe0, 2, 0]);
    let answer = bench.exchange(first().bytes(), &[0x12, 1, 0xc0, 0, 255, 0], &[], 255);
    assert_eq!((answer.sense(), answer.field()), ((ILLEGAL, 0x24, 0), (true, 2, None)));
}

#[test]
fn without_a_serial_number_the_place_is_the_name() {
    let options = |serial: &str| LunOptions {
        serial: serial.into(),
        medium: Medium::Disk,
    };
    let mut bench = Bench::on(blank(), options(""));
    let mut page = |page: u8| bench.exchange(first().bytes(), &[0x12, 1, page, 0, 255, 0], &[], 255);
    assert_eq!(page(0x00).good()[..9], [0, 0, 0, 5, 0, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(page(0x80).sense(), (ILLEGAL, 0x24, 0));
    assert_eq!(&page(0x83).good()[3..25], b"\x15\x02\x01\x00\x11KARAT   scsi0-0-0");
    let mut bench = Bench::on(blank(), options(&"\u{1f980}x".repeat(100)));
    assert_eq!(bench.get(&[0x12, 1, 0x80, 0, 255, 0], 255)[3..7], *b"\x40_x_");
}

#[test]
fn lists_its_commands() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    let all = bench.get(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096);
    let (entries, rest) = all[4..].as_chunks::<8>();
    assert!(rest.is_empty());
    assert_eq!(all[..4], u32::try_from(entries.len() * 8).unwrap().to_be_bytes());
    assert!(entries.contains(&[0x28, 0, 0, 0, 0, 0, 0, 10]));
    assert!(entries.contains(&[0x9e, 0, 0, 0x10, 0, 1, 0, 16]));
    assert!(!entries.iter().any(|entry| [0x43, 0x5e, 0x5f].contains(&entry[0])));
    let timed = bench.get(&[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096);
    assert_eq!(timed.len() - 4, entries.len() * 20);
    let mut one = |options, opcode, action| {
        let cdb = [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 16, 0, 0, 0];
        bench.exchange(first().bytes(), &cdb, &[], 64)
    };
    let read = one(1, 0x28, 0).good();
    assert_eq!(
        read[..14],
        [0, 3, 0, 10, 0x28, 0xf8, 255, 255, 255, 255, 0, 255, 255, 0]
    );
    assert_eq!(one(1, 0x5e, 0).good()[..4], [0, 1, 0, 0], "persistent reservations");
    assert_eq!(one(2, 0x9e, 0x10).good()[..6], [0, 3, 0, 16, 0x9e, 0x10]);
    assert_eq!(one(2, 0x9e, 0x12).good()[..4], [0, 1, 0, 0]);
    assert_eq!(one(3, 0x28, 0).good()[..4], [0, 3, 0, 10]);
    for (options, opcode) in [(1, 0x9e), (2, 0x28), (4, 0)] {
        let answer = one(options, opcode, 0);
        assert_eq!(
            (answer.sense(), answer.field()),
            ((ILLEGAL, 0x24, 0), (true, 2, Some(2)))
        );
    }
    for refused in [0x5e_u8, 0x5f, 0x56, 0xff] {
        let answer = bench.ask(first(), &[refused, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((answer.sense(), answer.field()), ((ILLEGAL, 0x20, 0), (true, 0, None)));
    }
}

#[test]
fn modes_are_told_and_the_write_cache_is_changed() {
    let mut bench = Bench::on(blank(), medium(Medium::Disk));
    let short = bench.get(&[0x1a, 0, 0x3f, 0, 255, 0], 255);
    assert_eq!(short[..4], [u8::try_from(short.len() - 1).unwrap(), 0, 0x10, 8]);
    assert_eq!(short[4..12], [0, 0, 8, 0, 0, 0, 2, 0]);
    assert_eq!(short[12..14], [1, 10]);
    assert_eq!(short[24..27], [8, 18, 4]);
    let long = bench.get(&[0x5a, 0x10, 8, 0, 0, 0, 0, 1, 0, 0], 256);
    assert_eq!(long[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(long[8..24], [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    let changeable = bench.get(&[0x1a, 8, 0x48, 0, 255, 0], 255);
    assert_eq!(changeable[..7], [23, 0, 0x10, 0, 8, 18, 4]);
    assert!(changeable[7..].iter().all(|&byte| byte == 0));
    let mut refused = |cdb: &[u8]| bench.exchange(first().bytes(), cdb, &[], 255).sense();
    assert_eq!(refused(&[0x1a, 0, 0xff, 0, 255, 0]), (ILLEGAL, 0x39, 0));
    assert_eq!(refused(&[0x1a, 0, 0x1c, 0, 255, 0]), (ILLEGAL, 0x24, 0));
    assert_eq!(refused(&[0x1a, 0, 0x3f, 1, 255, 0]), (ILLEGAL, 0x24, 0));

    // What was read can be written, with the cache off.
    let mut pages = short.clone();
    pages[26] = 0;
    let length = u8::try_from(pages.len()).unwrap();
    bench.put(&[0x15, 0x10, 0, 0, length, 0], &pages).good();
    assert_eq!(bench.get(&[0x1a, 8, 8, 0, 255, 0], 255)[6], 0);
    assert_eq!(bench.get(&[0x1a, 8, 0x88, 0, 255, 0], 255)[6], 4, "the default");
    let long: &[u8] = &[&[0; 8][..], &short[24..44]].concat();
    bench.put(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0], long).good();
    assert_eq!(bench.get(&[0x1a, 8, 8, 0, 255, 0], 255)[6], 4);
    // What can not be changed is pointed at, and nothing changes.
    for (at, value) in [(4, 1), (10, 4), (13, 11), (14, 1), (27, 1)] {
        let mut pages = short.clone();
        pages[26] = 0;
        pages[at] = value;
        let answer = bench.put(&[0x15, 0x10, 0, 0, length, 0], &pages);
        let at = u16::try_from(if at < 12 { 4 } else { at }).unwrap();
        assert_eq!(
            (answer.sense(), answer.field()),
            ((ILLEGAL, 0x26, 0), (false, at, None))
        );
    }
    for cut in [1, 3, 11, 13, 20] {
        let answer = bench.put(&[0x15, 0x10, 0, 0, cut, 0], &short[..cut.into()]);
        assert_eq!(answer.sense(), (ILLEGAL, 0x1a, 0), "{cut}");
    }
    assert_eq!(bench.put(&[0x15, 0x11, 0, 0, 0, 0], &[]).sense(), (ILLEGAL, 0x24, 0));
    assert_eq!(bench.put(&[0x15, 0x10, 0, 0, 9, 0], &[0; 4]).code, 1, "overrun");
    bench.put(&[0x15, 0x10, 0, 0, 0, 0], &[]).good();
    assert_eq!(bench.get(&[0x1a, 8, 8, 0, 255, 0], 255)[6], 4);
}
