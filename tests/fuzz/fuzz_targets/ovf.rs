//! An OVA: the archive, its description, its manifest; and a description by itself.
#![no_main]

use std::io::Read;

use image_formats::ova::{Envelope, Ova, OvaRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert!(envelope.files.len() <= 64 && envelope.disks.len() <= 64);
    }
    let rules = OvaRules {
        max_disk_bytes: 1 << 20,
        require_manifest: bytes.first().is_some_and(|byte| byte & 1 == 1),
    };
    let Ok(mut ova) = Ova::open(bytes, rules) else { return };
    assert!(!ova.disk().path.starts_with('/') && !ova.disk().path.split('/').any(|part| part == ".."));
    let mut disk = Vec::new();
    let read = ova.read_to_end(&mut disk);
    assert!(disk.len() <= 1 << 20);
    if read.is_ok() {
        let _ = ova.finish();
    }
});
