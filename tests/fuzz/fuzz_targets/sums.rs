//! A sums file, looked into under a name of its own and by a URL.
#![no_main]

use image_trust::{Pattern, Source, Sums, name_of_url};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(sums) = Sums::parse(bytes) {
        for entry in sums.entries() {
            let name = entry
                .name
                .rsplit(|&byte| byte == b'/')
                .next()
                .expect("at least one segment");
            let Ok(name) = std::str::from_utf8(name) else { continue };
            if let Ok(found) = sums.find(name) {
                assert!(sums.entries().iter().any(|entry| entry.digest == *found));
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = name_of_url(text);
        if let (Ok(source), Ok(pattern)) = (Source::parse(text), Pattern::parse(text)) {
            let again = Source::parse(&source.to_string());
            assert!(again.is_ok() || text.contains(['%', '*']), "{source}");
            let _ = pattern.matches(&source);
        }
    }
});
