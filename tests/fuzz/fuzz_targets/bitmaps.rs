//! A bitmap directory: the first byte says how many entries it is said to have.
#![no_main]

use disk_qcow2::meta::bitmap::{FLAG_IN_USE, Marking, mark_in_use, parse_directory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&count, directory)) = bytes.split_first() else { return };
    let parsed = parse_directory(directory, count.into());
    let mut marked = directory.to_vec();
    if mark_in_use(&mut marked, count.into(), Marking::All).is_ok()
        && let Ok(before) = parsed
    {
        let after = parse_directory(&marked, count.into()).expect("flags change nothing else");
        assert_eq!(after.len(), before.len());
        assert!(after.iter().all(|bitmap| bitmap.flags & FLAG_IN_USE != 0));
    }
});
