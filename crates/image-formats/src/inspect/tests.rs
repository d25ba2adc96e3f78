//! The machinery: pieces of any size, early refusals, what is kept. Formats themselves are in `tests/`.

use super::*;

fn qcow2(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
    bytes[36..40].copy_from_slice(&size.div_ceil(1 << 29).to_be_bytes()[4..]);
    bytes[40..48].copy_from_slice(&(3_u64 << 16).to_be_bytes());
    bytes[48..56].copy_from_slice(&(1_u64 << 16).to_be_bytes());
    bytes[59] = 1;
    bytes[99] = 4;
    bytes[103] = 104;
    bytes
}

fn vhd_footer(size: u64, kind: u8) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(b"conectix");
    bytes[48..56].copy_from_slice(&size.to_be_bytes());
    bytes[63] = kind;
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

fn expected() -> Expectations {
    Expectations::up_to(1 << 40)
}

/// Pushed in pieces, and with seeks: both must say the same.
fn inspect(bytes: &[u8], expected: &Expectations) -> Result<Inspection, Refusal> {
    let seeking = match Inspector::inspect(&mut io::Cursor::new(bytes), expected.clone()) {
        Ok(inspection) => Ok(inspection),
        Err(InspectError::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("{error}"),
    };
    for piece in [1 << 20, 100_000, 65_536, 1000, 511] {
        let mut inspector = Inspector::new(expected.clone());
        let pushed = bytes
            .chunks(piece)
            .try_for_each(|piece| inspector.feed(piece))
            .and_then(|()| {
                assert!(
                    inspector.head.capacity() + inspector.window.capacity() + inspector.tail.capacity()
                        <= 2 * KEPT_BYTES
                );
                inspector.finish()
            });
        assert_eq!(pushed, seeking, "in pieces of {piece}");
    }
    seeking
}

fn code(bytes: &[u8], expected: &Expectations) -> &'static str {
    inspect(bytes, expected).map_or_else(|refusal| refusal.code(), |_| "taken")
}

fn claimed(name: &str) -> Expectations {
    expected().claimed_by_name(name).unwrap()
}

#[test]
fn content_decides_and_claims_are_compared() {
    let image = qcow2(5 << 30);
    let inspection = inspect(&image, &claimed("qcow2")).unwrap();
    assert_eq!(
        (inspection.format, inspection.virtual_size_bytes),
        (Format::Qcow2, Some(5 << 30))
    );
    assert_eq!(inspection.size_bytes, image.len() as u64);
    assert_eq!(code(&image, &claimed("raw")), "format_mismatch");
    assert_eq!(code(&image, &claimed("iso")), "format_mismatch");
    let raw = vec![7; 100_000];
    assert_eq!(
        inspect(&raw, &claimed("raw")).unwrap().virtual_size_bytes,
        Some(100_000)
    );
    for name in ["iso", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "ova"] {
        assert_eq!(code(&raw, &claimed(name)), "format_mismatch", "{name}");
    }
    assert!(expected().claimed_by_name("ploop").is_none());
    assert_eq!(code(&[], &expected()), "empty");
    assert_eq!(code(&[1], &expected()), "taken");
}

#[test]
fn a_hybrid_iso_is_both_and_nothing_else_is() {
    let mut iso = vec![0; 100_000];
    iso[32_769..32_775].copy_from_slice(b"CD001\x01");
    assert_eq!(inspect(&iso, &claimed("iso")).unwrap().partitions, None);
    assert_eq!(code(&iso, &claimed("raw")), "format_mismatch");
    let with_mbr = |image: &mut [u8]| {
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image[450] = 0x17;
        image[458] = 9;
    };
    with_mbr(&mut iso);
    let inspection = inspect(&iso, &expected()).unwrap();
    assert_eq!(
        (inspection.format, inspection.partitions),
        (Format::Iso9660, Some(Partitions::Mbr))
    );
    assert_eq!(code(&iso, &claimed("raw")), "taken");
    let mut image = qcow2(1 << 30);
    with_mbr(&mut image);
    assert_eq!(code(&image, &claimed("qcow2")), "polyglot_partition_table");
    let mut image = qcow2(1 << 30);
    image[32_769..32_775].copy_from_slice(b"CD001\x01");
    assert_eq!(code(&image, &expected()), "polyglot");
    let mut image = qcow2(1 << 30);
    image.extend(vhd_footer(1 << 30, 2));
    assert_eq!(code(&image, &expected()), "polyglot");
}

#[test]
fn a_fixed_vhd_shows_at_its_end() {
    let mut image = vec![7; 1 << 20];
    image.extend(vhd_footer(1 << 20, 2));
    let inspection = inspect(&image, &claimed("vhd")).unwrap();
    assert_eq!(
        (inspection.format, inspection.virtual_size_bytes),
        (Format::Vhd, Some(1 << 20))
    );
    assert_eq!(code(&image, &claimed("raw")), "format_mismatch");
    let without = Expectations {
        allowed: vec![Format::Raw],
        ..expected()
    };
    assert_eq!(code(&image, &without), "format_not_allowed");
    let only = Expectations {
        allowed: vec![Format::Vhd],
        ..expected()
    };
    assert_eq!(code(&image, &only), "taken");
    assert_eq!(code(&image[..1 << 20], &only), "format_not_allowed");
    image[(1 << 20) + 48..].copy_from_slice(&vhd_footer(2 << 20, 2)[48..]);
    assert_eq!(code(&image, &expected()), "truncated");
    image[(1 << 20) + 48..].copy_from_slice(&vhd_footer(4096, 2)[48..]);
    assert_eq!(code(&image, &expected()), "damaged");
    image[(1 << 20) + 48..].copy_from_slice(&vhd_footer(1 << 20, 4)[48..]);
    assert_eq!(code(&image, &expected()), "vhd_parent");
}

#[test]
fn limits_speak_up_at_once() {
    let small = Expectations {
        max_virtual_bytes: 1 << 20,
        max_bytes: 200_000,
        ..expected()
    };
    let mut inspector = Inspector::new(small.clone());
    assert_eq!(inspector.format_so_far(), None);
    assert_eq!(
        inspector.feed(&qcow2(2 << 20)[..HEAD_BYTES]).unwrap_err().code(),
        "virtual_size_beyond_quota"
    );
    let mut inspector = Inspector::new(small);
    inspector.feed(&vec![1; 150_000]).unwrap();
    assert_eq!(inspector.format_so_far(), Some(Format::Raw));
    assert_eq!(inspector.feed(&[1; 60_000]).unwrap_err().code(), "bytes_beyond_quota");
}

#[test]
fn packed_in_packed_is_refused_and_other_packings_are_not_taken() {
    let inside = |wrapping| Expectations { wrapping, ..expected() };
    let gzip = [b"\x1f\x8b\x08\0".as_slice(), &[0; 100]].concat();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let zip = [b"PK\x03\x04".as_slice(), &[0; 100]].concat();
    for (bytes, alone, compressed, archived) in [
        (&gzip, "format_not_allowed", "nested_compression", "nested_compression"),
        (&tar, "taken", "taken", "nested_archive"),
        (&zip, "format_not_allowed", "nested_compression", "nested_archive"),
    ] {
        assert_eq!(code(bytes, &expected()), alone);
        assert_eq!(code(bytes, &inside(Wrapping::Compression)), compressed);
        assert_eq!(code(bytes, &inside(Wrapping::Archive)), archived);
    }
}

#[test]
fn a_long_image_is_not_copied() {
    let piece = vec![7; 8 << 20];
    let mut inspector = Inspector::new(expected());
    let began = std::time::Instant::now();
    for _ in 0..100_000 {
        inspector.feed(&piece).unwrap();
    }
    // Reading these 800 GiB once would take minutes.
    assert!(
        began.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        inspector.finish().unwrap().virtual_size_bytes,
        Some(100_000 * (8 << 20))
    );
}

#[test]
fn a_cut_qcow2_is_told() {
    let image = qcow2(1 << 30);
    assert_eq!(code(&image[..image.len() - (1 << 16)], &expected()), "truncated");
    assert_eq!(code(&image[..80], &expected()), "damaged");
}

proptest::proptest! {
    #[test]
    fn any_bytes_get_the_same_answer_either_way(
        mark in 0_usize..7, at in 0_usize..600, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..700), pad in 0_usize..70_000,
    ) {
        let mut image = match mark {
            0 => qcow2(1 << 20),
            1 => [b"KDMV\x01\0\0\0".as_slice(), &[0; 700]].concat(),
            2 => vhd_footer(1 << 20, 3).repeat(3),
            3 => b"vhdxfile".to_vec(),
            4 => [[0; 64].as_slice(), &[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0], &[0; 400]].concat(),
            5 => b"# Disk DescriptorFile\n".to_vec(),
            _ => Vec::new(),
        };
        let at = at.min(image.len());
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
        image.resize(image.len() + pad, 0);
        let _ = inspect(&image, &expected());
    }
}
