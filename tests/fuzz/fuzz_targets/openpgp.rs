//! OpenPGP: a key ring, a clear-signed file, and a detached signature, over a key that never signed anything of it.
#![no_main]

use std::sync::LazyLock;
use std::time::SystemTime;

use image_trust::openpgp::KeyRing;
use libfuzzer_sys::fuzz_target;

static RING: LazyLock<KeyRing> =
    LazyLock::new(|| KeyRing::parse(include_bytes!("../corpus/openpgp/key")).expect("a key ring"));
const SIGNED: &[u8] = include_bytes!("../corpus/openpgp/list");

fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let _ = RING
        .verify_detached(b"never signed", bytes, now)
        .expect_err("nobody signed this");
    let _ = RING.verify_detached(SIGNED, bytes, now);
    if let Ok((text, _)) = RING.verify_clear_signed(bytes, now) {
        assert_eq!(text, SIGNED.strip_suffix(b"\n").expect("a line"));
    }
    if let Ok(ring) = KeyRing::parse(bytes) {
        let signature = include_bytes!("../corpus/openpgp/detached");
        let _ = ring.verify_detached(SIGNED, signature, now);
    }
});
