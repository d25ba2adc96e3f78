//! Zstandard streams: whole, several frames, damaged, too large a window, and entered between frames.

use std::io::{self, Read};

use zstd::stream::raw::CParameter;

use super::Unzstd;
use crate::ImageDigest;
use crate::inflow::{Inflow, Place};

/// A frame that nobody has to understand.
const SKIPPABLE: [u8; 11] = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];

fn text(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * index / 7 + index / 1000) % 251).unwrap())
        .collect()
}

/// A frame without the length of its content, as those have that are made while the content comes.
fn frame(bytes: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    for parameter in parameters {
        encoder.set_parameter(*parameter).unwrap();
    }
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gives a few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.1);
        self.0.read(&mut buffer[..count])
    }
}

fn open(packed: &[u8], at_a_time: usize) -> Unzstd<Inflow<Trickle<'_>>> {
    Unzstd::new(Inflow::new(Trickle(packed, at_a_time), packed.len() as u64)).unwrap()
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    open(packed, usize::MAX).read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn unpacks_one_frame_and_several_however_they_come() {
    let bytes = text(700_000);
    for parameters in [&[][..], &[CParameter::WindowLog(26)], &[CParameter::WindowLog(10)]] {
        assert!(unpack(&frame(&bytes, parameters)).unwrap() == bytes);
    }
    let several = [
        &SKIPPABLE[..],
        &frame(&bytes[..300_000], &[]),
        &frame(b"", &[]),
        &SKIPPABLE,
        &frame(&bytes[300_000..], &[]),
        &SKIPPABLE,
    ]
    .concat();
    for at_a_time in [1, 7, 5000, usize::MAX] {
        let mut stream = open(&several, at_a_time);
        let mut out = Vec::new();
        let mut piece = [0; 999];
        loop {
            match stream.read(&mut piece).unwrap() {
                0 => break,
                count => out.extend_from_slice(&piece[..count]),
            }
        }
        assert!(out == bytes, "{at_a_time} at a time");
        assert_eq!(stream.offset(), several.len() as u64);
        assert_eq!(stream.into_inner().finish().unwrap(), ImageDigest::of(&several));
    }
}

#[test]
fn damage_is_told_from_an_early_end_and_a_large_window_is_refused() {
    let packed = frame(&text(400_000), &[]);
    for cut in [0, 3, 12, packed.len() / 2, packed.len() - 1] {
        let kind = unpack(&packed[..cut]).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof, "cut at {cut}");
    }
    let damaged = |packed: &[u8]| unpack(packed).unwrap_err().kind() != io::ErrorKind::UnexpectedEof;
    assert!(damaged(b"no zstd at all"));
    assert!(damaged(&[&packed[..], b"something else"].concat()));
    let mut checksum = packed.clone();
    *checksum.last_mut().unwrap() ^= 1;
    assert!(damaged(&checksum));
    let large = unpack(&frame(&text(400_000), &[CParameter::WindowLog(27)])).unwrap_err();
    assert!(large.to_string().contains("memory"), "{large}");
}

#[test]
fn is_entered_between_frames_and_nowhere_else() {
    let bytes = text(900_000);
    let packed: Vec<u8> = bytes.chunks(100_000).flat_map(|chunk| frame(chunk, &[])).collect();
    let (mut out, mut piece, mut places) = (Vec::new(), vec![0; 30_000], Vec::<(usize, Place)>::new());
    let mut stream = open(&packed, 10_000);
    assert_eq!(stream.place(), None, "nothing was read");
    loop {
        let count = stream.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        out.extend_from_slice(&piece[..count]);
        places.extend(stream.place().map(|place| (out.len(), place)));
    }
    assert!(out == bytes);
    assert_eq!(stream.place(), None, "that is the end");
    assert!(places.len() >= 8, "{}", places.len());
    for (given, place) in &places {
        assert!(given.is_multiple_of(100_000), "{given}");
        let text = serde_json::to_string(place).unwrap();
        let place: Place = serde_json::from_str(&text).unwrap();
        let rest = &packed[usize::try_from(place.offset).unwrap()..];
        let inflow = Inflow::resume(rest, packed.len() as u64, &place).unwrap();
        let (mut stream, mut out) = (Unzstd::resume(inflow).unwrap(), Vec::new());
        stream.read_to_end(&mut out).unwrap();
        assert!(out == bytes[*given..]);
        assert_eq!(stream.into_inner().finish().unwrap(), ImageDigest::of(&packed));
    }
}
