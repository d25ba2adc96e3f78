//! Streams of each kind: whole, several, padded, cut, damaged, too large.

use std::io::Write;

use liblzma::stream::{Check, Filters, LzmaOptions};

use super::*;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn xz(data: &[u8], dictionary: u32) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(0).unwrap();
    options.dict_size(dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, Check::Crc64).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn all(data: &[u8]) -> [(Packing, Vec<u8>); 4] {
    [
        (Packing::Gzip, gzip(data)),
        (Packing::Bzip2, bzip2(data)),
        (Packing::Xz, xz(data, 1 << 20)),
        (Packing::Zstd, zstd(data)),
    ]
}

/// Gives at most a few bytes at a time, and is interrupted in between.
struct Trickle<'a>(&'a [u8], usize, bool);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.2 = !self.2;
        if self.2 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(self.1);
        self.0.read(&mut buffer[..count])
    }
}

fn unpack(bytes: &[u8], limits: DecompressLimits) -> Result<Vec<u8>, &'static str> {
    let fast = take(bytes, limits);
    if bytes.len() < 100_000 {
        assert_eq!(take(Trickle(bytes, 3, false), limits), fast, "in small pieces");
    }
    fast
}

fn take(input: impl Read, limits: DecompressLimits) -> Result<Vec<u8>, &'static str> {
    let mut stream = Decompress::new(input, limits).map_err(|error| error.code())?;
    let mut out = Vec::new();
    let result = stream.read_to_end(&mut out);
    if result.is_err() {
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0, "nothing comes after an error");
    }
    result
        .map(|_| out)
        .map_err(|error| DecompressError::of(&error).map_or("other", DecompressError::code))
}

fn limits() -> DecompressLimits {
    DecompressLimits::up_to(1 << 30)
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(step).collect()
}

#[test]
fn streams_of_each_kind_are_read_also_several_in_a_row() {
    let (one, two) = (noise(300_000), b"two".to_vec());
    let whole = [one.clone(), two.clone(), two.clone()].concat();
    for ((packing, a), (_, b)) in all(&one).into_iter().zip(all(&two)) {
        assert_eq!(unpack(&a, limits()).as_deref(), Ok(one.as_slice()), "{packing:?}");
        let several = [a, b.clone(), b].concat();
        assert_eq!(
            unpack(&several, limits()).as_deref(),
            Ok(whole.as_slice()),
            "{packing:?}"
        );
        let mut stream = Decompress::new(several.as_slice(), limits()).unwrap();
        assert_eq!(stream.packing(), Some(packing));
        io::copy(&mut stream, &mut io::sink()).unwrap();
        assert_eq!(stream.unpacked_bytes(), whole.len() as u64);
        assert_eq!(stream.packed_bytes(), several.len() as u64);
    }
    for (packing, nothing) in all(b"") {
        assert_eq!(unpack(&nothing, limits()), Ok(Vec::new()), "{packing:?}");
    }
}

#[test]
fn what_is_not_compressed_passes() {
    for bytes in [noise(200_000), Vec::new(), vec![0x1f], b"BZhello".to_vec()] {
        assert_eq!(unpack(&bytes, limits()), Ok(bytes.clone()));
        assert_eq!(Decompress::new(bytes.as_slice(), limits()).unwrap().packing(), None);
    }
    let small = DecompressLimits::up_to(10);
    assert_eq!(unpack(&[1; 10], small).unwrap().len(), 10);
    assert_eq!(unpack(&[1; 11], small), Err("output_beyond_limit"));
}

#[test]
fn padding_is_passed_where_the_format_has_it() {
    let data = b"data";
    let skippable = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let zeros = |packed: Vec<u8>, count: usize| [packed, vec![0; count]].concat();
    assert_eq!(
        unpack(&zeros(gzip(data), 70_000), limits()).as_deref(),
        Ok(data.as_slice())
    );
    assert_eq!(
        unpack(&zeros(xz(data, 4096), 8), limits()).as_deref(),
        Ok(data.as_slice())
    );
    assert_eq!(unpack(&zeros(xz(data, 4096), 7), limits()), Err("trailing_garbage"));
    let both = [zeros(xz(data, 4096), 4), xz(b"x", 4096)].concat();
    assert_eq!(unpack(&both, limits()).as_deref(), Ok(b"datax".as_slice()));
    assert_eq!(unpack(&zeros(zstd(data), 4), limits()), Err("trailing_garbage"));
    assert_eq!(unpack(&zeros(bzip2(data), 4), limits()), Err("trailing_garbage"));
    let framed = [&skippable[..], &zstd(data), &skippable].concat();
    assert_eq!(unpack(&framed, limits()).as_deref(), Ok(data.as_slice()));
}

#[test]
fn garbage_cuts_and_damage_are_told_apart() {
    let data = noise(5000);
    for (packing, packed) in all(&data) {
        let trailing = [packed.clone(), b"#!/bin/sh".to_vec()].concat();
        assert_eq!(unpack(&trailing, limits()), Err("trailing_garbage"), "{packing:?}");
        let other = if packing == Packing::Gzip {
            xz(b"x", 4096)
        } else {
            gzip(b"x")
        };
        assert_eq!(
            unpack(&[packed.clone(), other].concat(), limits()),
            Err("trailing_garbage"),
            "{packing:?}"
        );
        for cut in [packed.len() - 1, packed.len() / 2, 30, 12] {
            let found = unpack(&packed[..cut], limits());
            assert_eq!(
                found,
                Err("compressed_truncated"),
                "{packing:?} cut to {cut} of {}",
                packed.len()
            );
        }
        let mut damaged = packed.clone();
        let at = packed.len() / 2;
        damaged[at] ^= 0x10;
        let found = unpack(&damaged, limits());
        assert!(
            matches!(found, Err("compressed_damaged" | "compressed_truncated")),
            "{packing:?}: {found:?}"
        );
    }
}

#[test]
fn bombs_end_at_their_limit() {
    let zeros = vec![0; 8 << 20];
    let tight = DecompressLimits {
        ratio_from_bytes: 1 << 20,
        max_ratio: 500,
        ..limits()
    };
    for (packing, packed) in all(&zeros) {
        assert_eq!(
            unpack(&packed, tight),
            Err("ratio_beyond_limit"),
            "{packing:?}: {}",
            packed.len()
        );
        assert_eq!(
            unpack(&packed, limits()).map(|out| out.len()),
            Ok(zeros.len()),
            "{packing:?}"
        );
        let short = DecompressLimits::up_to((8 << 20) - 1);
        assert_eq!(unpack(&packed, short), Err("output_beyond_limit"), "{packing:?}");
        assert_eq!(
            unpack(&packed, DecompressLimits::up_to(8 << 20)).map(|out| out.len()),
            Ok(zeros.len())
        );
    }
}

#[test]
fn memory_is_refused_before_it_is_taken() {
    let tight = DecompressLimits {
        max_memory_bytes: 1 << 20,
        ..limits()
    };
    assert_eq!(unpack(&xz(b"x", 8 << 20), tight), Err("memory_beyond_limit"));
    assert_eq!(unpack(&xz(b"x", 64 << 20), limits()), Ok(b"x".to_vec()), "xz -9");
    // A frame of 2 GiB window; the header is enough.
    let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8][..], &[0; 20]].concat();
    assert_eq!(unpack(&frame, limits()), Err("memory_beyond_limit"));
    let second = [zstd(b"x"), frame].concat();
    assert_eq!(unpack(&second, limits()), Err("memory_beyond_limit"));
    assert_eq!(
        unpack(b"\x04\x22\x4d\x18....", limits()),
        Err("compression_unsupported")
    );
    assert_eq!(unpack(b"PK\x03\x04....", limits()), Err("compression_unsupported"));
}

#[test]
fn errors_of_the_source_stay_what_they_are() {
    struct Broken(Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection lost"));
            }
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    for (packing, packed) in all(&noise(200_000)) {
        let half = packed[..packed.len() / 2].to_vec();
        let mut stream = Decompress::new(Broken(half), limits()).unwrap();
        let error = io::copy(&mut stream, &mut io::sink()).unwrap_err();
        assert!(DecompressError::of(&error).is_none(), "{packing:?}");
        assert_eq!(error.to_string(), "connection lost", "{packing:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_get_an_answer(kind in 0_usize..4, at in 0_usize..300, noise in proptest::collection::vec(proptest::num::u8::ANY, 0..50)) {
        let mut bytes = all(b"some bytes, some bytes, and others").into_iter().nth(kind).unwrap().1;
        let at = at.min(bytes.len());
        bytes.splice(at..(at + noise.len()).min(bytes.len()), noise);
        let _ = unpack(&bytes, DecompressLimits::up_to(1 << 20));
    }
}
