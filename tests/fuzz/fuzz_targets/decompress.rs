//! Compressed streams: read whole and in pieces, the answer is the same, and within the limits.
#![no_main]

use std::io::Read;

use image_formats::{Decompress, DecompressError, DecompressLimits};
use libfuzzer_sys::fuzz_target;

const OUTPUT_BYTES: u64 = 4 << 20;

struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.1);
        self.0.read(&mut buffer[..count])
    }
}

fn unpack(input: impl Read, step: usize) -> (Vec<u8>, Option<&'static str>) {
    let limits = DecompressLimits {
        ratio_from_bytes: 1 << 20,
        max_memory_bytes: 8 << 20,
        ..DecompressLimits::up_to(OUTPUT_BYTES)
    };
    let mut stream = match Decompress::new(input, limits) {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error.code())),
    };
    let mut out = Vec::new();
    let mut buffer = vec![0; step];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (out, None),
            Ok(count) => out.extend_from_slice(&buffer[..count]),
            Err(error) => return (out, DecompressError::of(&error).map(DecompressError::code)),
        }
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let (whole, code) = unpack(bytes, 64 << 10);
    assert!(whole.len() as u64 <= OUTPUT_BYTES);
    let (pieces, other) = unpack(Pieces(bytes, usize::from(piece) + 1), 1000);
    // Where an error comes, more or less may have come out before it.
    assert_eq!(code.is_none(), other.is_none());
    if code.is_none() {
        assert_eq!(whole, pieces);
    }
});
