//! Streams of a migration: the first byte is a kind, the rest its payload; and all of it as a stream of frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration::wire::{KIND_PAGES, Message, PageFrame, read_frame};
use migration::{PAGE_BYTES, delta};

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    let mut payload = Vec::new();
    while let Ok(kind) = read_frame(&mut stream, &mut payload) {
        let _ = Message::decode(kind, &payload);
    }
    let Some((&kind, payload)) = bytes.split_first() else { return };
    if kind == KIND_PAGES {
        if let Ok(pages) = PageFrame::decode(payload) {
            assert_eq!(pages.all().count_ones(), pages.zero.count_ones() + pages.raw.count_ones() + pages.delta.count_ones());
            let _ = pages.unpack_all();
        }
    } else if let Ok(message) = Message::decode(kind, payload) {
        let frame = message.encode();
        let mut again = Vec::new();
        let same = read_frame(&mut &frame[..], &mut again).expect("what we write we read");
        assert_eq!(Message::decode(same, &again).expect("what we write we understand"), message);
    }
    let mut page = [0x5a; PAGE_BYTES];
    let _ = delta::apply(payload, &mut page);
    let mut encoded = Vec::new();
    let old = [0x5a; PAGE_BYTES];
    if delta::encode(&old, &page, &mut encoded) {
        let mut back = old;
        delta::apply(&encoded, &mut back).expect("what we write we apply");
        assert!(back == page);
    }
});
