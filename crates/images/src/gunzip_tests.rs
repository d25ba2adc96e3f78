//! Gzip streams: whole, several, damaged, and entered in the middle.

use std::io::{self, Read, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};

use super::{Gunzip, Junction};
use crate::inflow::Inflow;

/// Compressible, with repetitions further apart than 20 KiB.
fn text(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 30 == 0 && bytes.len() > 30_000 {
            let from = bytes.len() - 30_000;
            bytes.extend_from_within(from..from + 40);
        } else {
            bytes.extend_from_slice(&state.to_be_bytes()[..3]);
        }
    }
    bytes.truncate(length);
    bytes
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(packed: &[u8]) -> Gunzip<&[u8]> {
    Gunzip::new(Inflow::new(packed, packed.len() as u64))
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    open(packed).read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn unpacks_what_others_pack() {
    let bytes = text(3_000_000);
    for level in [0, 1, 6, 9] {
        assert!(unpack(&gzip(&bytes, level)).unwrap() == bytes, "level {level}");
    }
    assert!(unpack(&gzip(&vec![0; 10 << 20], 6)).unwrap() == vec![0; 10 << 20]);
    assert!(unpack(&gzip(b"", 6)).unwrap().is_empty());
    let several = [gzip(&bytes[..100_000], 6), gzip(b"", 1), gzip(&bytes[100_000..], 1)].concat();
    assert!(unpack(&several).unwrap() == bytes, "members one after the other");
    let mut named = GzBuilder::new()
        .filename("layer.tar")
        .comment("made elsewhere")
        .extra([7; 300])
        .write(Vec::new(), Compression::fast());
    named.write_all(&bytes).unwrap();
    assert!(unpack(&named.finish().unwrap()).unwrap() == bytes);
}

#[test]
fn damage_is_told_from_an_early_end() {
    let packed = gzip(&text(400_000), 6);
    for cut in [3, 9, 100, packed.len() / 2, packed.len() - 1] {
        let kind = unpack(&packed[..cut]).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof, "cut at {cut}");
    }
    let invalid = |packed: &[u8]| unpack(packed).unwrap_err().kind() == io::ErrorKind::InvalidData;
    assert!(invalid(b"no gzip at all"));
    let mut wrong = packed.clone();
    let last = wrong.len() - 5;
    wrong[last] ^= 1;
    assert!(invalid(&wrong), "checksum");
    assert!(invalid(&[packed, b"and more".to_vec()].concat()));
}

#[test]
fn goes_on_at_every_junction() {
    let bytes = text(2_000_000);
    let packed = [gzip(&bytes[..1_500_000], 6), gzip(&bytes[1_500_000..], 1)].concat();
    let mut whole = open(&packed);
    let (mut had, mut buffer, mut junctions) = (0, [0; 5000], 0);
    loop {
        let count = whole.read(&mut buffer).unwrap();
        assert!(bytes[had..had + count] == buffer[..count]);
        had += count;
        if count == 0 {
            break;
        }
        let Some(junction) = whole.junction() else { continue };
        junctions += 1;
        let text = serde_json::to_string(&junction).unwrap();
        let kept: Junction = serde_json::from_str(&text).unwrap();
        assert_eq!(kept, junction);
        let from = usize::try_from(kept.place.offset).unwrap();
        let inflow = Inflow::resume(&packed[from..], packed.len() as u64, &kept.place).unwrap();
        let mut rest = Vec::new();
        let mut again = Gunzip::resume(inflow, &kept).unwrap();
        again.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[had..], "behind {had}");
        assert_eq!(again.into_inner().finish().unwrap(), crate::ImageDigest::of(&packed));
    }
    assert_eq!(had, bytes.len());
    assert!(junctions > 10, "{junctions}");
}

proptest::proptest! {
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..300), at in 0usize..5000, byte: u8) {
        let _ = unpack(&noise);
        let mut packed = gzip(&text(20_000), 6);
        let index = at % packed.len();
        packed[index] = byte;
        let _ = unpack(&packed);
        packed.truncate(10);
        packed.extend(noise);
        let _ = unpack(&packed);
    }
}
