//! Entries of a snapshot table, one after the other.
#![no_main]

use disk_qcow2::meta::snapshot::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(len) = Snapshot::entry_bytes(rest) {
        let Ok(mut snapshot) = Snapshot::parse(rest) else { break };
        let stored = snapshot.to_bytes().expect("what was parsed can be stored");
        assert_eq!(stored.len(), len);
        assert_eq!(Snapshot::parse(&stored), Ok(snapshot.clone()));
        snapshot.complete_for_v3(512);
        let _ = snapshot.to_bytes();
        let Some(next) = rest.get(len..) else { break };
        rest = next;
    }
});
