//! The first cluster: header, extensions, backing name. What is accepted is written back as it was.
#![no_main]

use disk_qcow2::meta::head::Head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(head) = Head::parse(bytes) {
        let again = head.header.encode();
        assert_eq!(again.len(), head.header.header_len as usize);
        // Padding behind the compression type is not kept.
        let same = again.len().min(104).min(bytes.len());
        assert_eq!(again[..same], bytes[..same]);
    }
});
