//! Header extensions: what is accepted survives being written and parsed again.
#![no_main]

use disk_qcow2::meta::extension::{Extensions, FeatureSet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(extensions) = Extensions::parse(bytes) {
        let _ = (extensions.backing_format(), extensions.data_file(), extensions.bitmaps());
        for bit in 0..64 {
            let _ = extensions.feature_name(FeatureSet::Incompatible, bit);
        }
        let stored = extensions.to_bytes();
        assert_eq!(stored.len(), extensions.stored_bytes());
        assert_eq!(Extensions::parse(&stored), Ok(extensions));
    }
});
