//! A whole image: checked, repaired, and checked again.
#![no_main]

use disk::Disk;
use disk_qcow2::ops::{Limits, Repair, check, info, repair};
use karat_fuzz::{FILE_BYTES, Memory, run};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    memory_bytes: 4 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    let image = Memory::holding(bytes, FILE_BYTES);
    run(async {
        let io = image.open_queue().expect("a queue");
        let _ = info(&*io).await;
        if check(&*io, LIMITS).await.is_err() {
            return;
        }
        if let Ok(report) = repair(&*io, Repair::All, LIMITS).await
            && let Ok(again) = check(&*io, LIMITS).await
        {
            assert_eq!((again.corruptions, again.leaks), (report.corruptions, report.leaks));
        }
    });
});
