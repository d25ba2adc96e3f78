//! An image of any format: pushed in pieces and read with seeks, the answer is the same, and within what is allowed.
#![no_main]

use std::io::Cursor;

use image_formats::{Expectations, InspectError, Inspector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (piece, padded, bytes) = input;
    let mut image = bytes.to_vec();
    if padded {
        // Beyond the region table of a vhdx, in the middle of a window.
        image.resize(image.len() + (300 << 10), 0);
    }
    let expected = Expectations::up_to(1 << 40);
    let mut inspector = Inspector::new(expected.clone());
    let piece = usize::from(piece).max(1);
    let pushed = image.chunks(piece).try_for_each(|piece| inspector.feed(piece)).and_then(|()| inspector.finish());
    let sought = match Inspector::inspect(&mut Cursor::new(&image), expected) {
        Ok(found) => Ok(found),
        Err(InspectError::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(pushed, sought);
    if let Ok(found) = pushed {
        assert!(found.virtual_size_bytes.is_none_or(|size| size <= 1 << 40));
        assert_eq!(found.size_bytes, image.len() as u64);
    }
});
