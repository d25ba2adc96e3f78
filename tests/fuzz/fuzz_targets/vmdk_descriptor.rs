//! The description of a vmdk: what is taken names one plain file.
#![no_main]

use image_formats::inspect::VmdkDescriptor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(descriptor) = VmdkDescriptor::parse(bytes) {
        assert!(matches!(descriptor.create_type.as_str(), "monolithicSparse" | "streamOptimized"));
        assert!(!descriptor.file.contains(['/', '\\', ':']) && descriptor.file != "..");
        let text = String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap()).to_lowercase();
        assert!(!text.contains("parentfilenamehint"));
    }
});
