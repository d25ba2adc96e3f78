//! Tiny guests with disks: interrupts, and data that is where it should be afterwards.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use control::{EndReason, VmEvent, VmRequest};
use harness::{Setup, Vmm, can_run};

/// Length of the disks here, bytes.
const DISK_BYTES: u64 = 1 << 20;
const SECTOR: usize = 512;

/// A disk image of which every byte is `fill`.
fn disk(folder: &tempfile::TempDir, name: &str, fill: u8) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, vec![fill; usize::try_from(DISK_BYTES).unwrap()]).unwrap();
    path
}

/// Boots `setup`, whose guest leaves by itself and must have found nothing wrong; its console.
fn run_to_end(setup: Setup) -> String {
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    let report = link.wait_for_report();
    let seen = console.wait_for_end().to_owned();
    assert_eq!(report.reason, EndReason::DebugExit { code: 0 }, "{seen}");
    vmm.wait();
    seen
}

#[test]
fn message_interrupts_are_delivered_masked_and_pending() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let seen = run_to_end(Setup::tiny("msix").disk(&disk(&folder, "a", 0), 1));
    assert!(seen.contains("PASS msix"), "{seen}");
}

#[test]
fn data_written_by_the_guest_is_in_the_file() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = disk(&folder, "a", 0xee);
    let seen = run_to_end(Setup::tiny("blk").disk(&image, 2));
    assert!(
        seen.contains("PASS blk") && seen.contains(&format!("disk_sectors={}", DISK_BYTES / 512)),
        "{seen}"
    );
    let file = File::open(&image).unwrap();
    let sector = |index: u64| {
        let mut bytes = [0; SECTOR];
        file.read_exact_at(&mut bytes, index * SECTOR as u64).unwrap();
        bytes
    };
    // Where the guest wrote is its pattern, which is neither what was there nor zero; elsewhere all is as it was.
    assert!(sector(0) != [0xee; SECTOR] && sector(0) != [0; SECTOR]);
    assert_ne!(sector(0), sector(DISK_BYTES / 512 - 1));
    assert_eq!(sector(1000), [0xee; SECTOR]);
    // Another machine finds it.
    let seen = run_to_end(Setup::tiny("blk-verify").disk(&image, 1));
    assert!(seen.contains("PASS blk-verify"), "{seen}");
}

#[test]
fn several_disks_are_told_apart_and_survive_resets() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (disk(&folder, "a", 0xaa), disk(&folder, "b", 0xbb));
    let (mut vmm, mut link) = Vmm::boot(Setup::tiny("blk,blk-verify,reset").disk(&first, 1).disk(&second, 4));
    for _ in 0..3 {
        link.wait_for(|event| matches!(event, VmEvent::GuestReset { .. }).then_some(()));
    }
    link.ask(VmRequest::Quit).unwrap();
    vmm.wait();
    let log = vmm.console_log();
    assert!(!log.contains("FAIL"), "{log}");
    assert!(log.matches("PASS blk-verify").count() >= 3, "{log}");
    let untouched = std::fs::read(&second).unwrap();
    assert!(
        untouched.iter().all(|&byte| byte == 0xbb),
        "the guest uses the first disk only"
    );
}

#[test]
fn a_paused_disk_goes_on_where_it_was() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::tiny("blk,msix,blk,msix,blk,msix,blk,msix,blk-verify").disk(&disk(&folder, "a", 0), 1);
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut pauses = 0;
    while let Some(Ok(_)) = link.ask_if_there(VmRequest::Pause) {
        pauses += 1;
        if link.ask_if_there(VmRequest::Resume).is_none() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(
        vmm.report().reason,
        EndReason::DebugExit { code: 0 },
        "{}",
        vmm.console_log()
    );
    assert!(pauses > 3, "only {pauses} pauses while the guest ran");
}

#[test]
fn a_disk_in_use_is_refused() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = disk(&folder, "a", 0);
    let (_holder, _link) = Vmm::boot(Setup::tiny("halt").disk(&image, 1));
    let mut second = Vmm::spawn();
    let mut link = second.link();
    let refusal = second
        .create(&mut link, Setup::tiny("halt").disk(&image, 1))
        .unwrap_err();
    assert_eq!(refusal.kind, control::RefusalKind::BadFile, "{}", refusal.message);
    assert_eq!(second.report().reason, EndReason::BuildFailed);
}
