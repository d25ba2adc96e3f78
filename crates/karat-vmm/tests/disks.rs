//! Tiny guests with disks: interrupts, and data that is where it should be afterwards.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use control::{DiskChange, DiskJobState, DiskLayer, DiskReport, EndReason, RefusalKind, VmEvent, VmRequest};
use disk_qcow2::ops::{BackingName, CreateOptions, create};
use disk_raw::{RawDisk, RawOptions, Role};
use harness::{Link, Setup, Vmm, can_run, open_chain};
use spec::testing::disk as disk_spec;
use spec::{ByteSize, DiskBus, DiskFormat, DiskLimits};

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
    assert_eq!(refusal.kind, RefusalKind::BadFile, "{}", refusal.message);
    assert_eq!(second.report().reason, EndReason::BuildFailed);
}

/// An empty qcow2 image over `backing`.
fn qcow2(folder: &tempfile::TempDir, name: &str, backing: (&str, &str)) -> PathBuf {
    let path = folder.path().join(name);
    File::create_new(&path).unwrap();
    let options = RawOptions {
        role: Role::Container,
        ..RawOptions::named(name)
    };
    let file: std::sync::Arc<dyn disk::Disk> = std::sync::Arc::new(RawDisk::open(&path, options).unwrap());
    let mut options = CreateOptions::of_size(DISK_BYTES);
    options.backing = Some(BackingName {
        name: backing.0.to_owned(),
        format: backing.1.to_owned(),
    });
    let mut executor = uring::Executor::new(16).unwrap();
    let made = executor.block_on(async { create(&*file.open_queue().unwrap(), None, &options).await });
    made.unwrap().unwrap();
    path
}

#[test]
fn a_chain_keeps_what_the_guest_writes_and_its_lower_images_as_they_are() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = disk(&folder, "base", 0xee);
    let middle = qcow2(&folder, "middle", ("base", "raw"));
    let top = qcow2(&folder, "top", ("middle", "qcow2"));
    let before = std::fs::read(&middle).unwrap();
    let chain = [
        (top.as_path(), DiskFormat::Qcow2),
        (middle.as_path(), DiskFormat::Qcow2),
        (base.as_path(), DiskFormat::Raw),
    ];
    let setup = |test| Setup::tiny(test).chain(disk_spec("disk", DiskBus::Virtio, 2), &chain);
    let seen = run_to_end(setup("blk"));
    assert!(seen.contains("PASS blk"), "{seen}");
    let seen = run_to_end(setup("blk-verify"));
    assert!(seen.contains("PASS blk-verify"), "{seen}");
    assert_eq!(std::fs::read(&middle).unwrap(), before);
    assert!(std::fs::read(&base).unwrap().iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_damaged_image_is_refused_by_its_name() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = disk(&folder, "base", 0);
    let top = qcow2(&folder, "top", ("base", "raw"));
    let file = File::options().write(true).open(&top).unwrap();
    // Byte 79: the incompatible feature "corrupt" (qcow2 specification, header extension of version 3).
    file.write_all_at(&[2], 79).unwrap();
    let mut vmm = Vmm::spawn();
    let mut link = vmm.link();
    let chain = [(top.as_path(), DiskFormat::Qcow2), (base.as_path(), DiskFormat::Raw)];
    let setup = Setup::tiny("halt").chain(disk_spec("data", DiskBus::Virtio, 1), &chain);
    let refusal = vmm.create(&mut link, setup).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadFile, "{}", refusal.message);
    assert!(
        refusal.message.contains("disk data") && refusal.message.contains("corrupt") && refusal.message.contains("top"),
        "{}",
        refusal.message
    );
    vmm.wait();
}

fn change(link: &mut Link, disk: &str, change: DiskChange) -> Result<(), RefusalKind> {
    let disk = disk.parse().unwrap();
    let answer = link.ask(VmRequest::Disk { disk, change });
    answer.map(drop).map_err(|refusal| refusal.kind)
}

fn report(link: &mut Link, name: &str) -> Option<DiskReport> {
    link.disk_reports()
        .into_iter()
        .find(|report| report.name.as_str() == name)
}

#[test]
fn disks_are_changed_attached_and_detached_while_the_machine_runs() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let images = ["a", "b", "c"].map(|name| disk(&folder, name, 0));
    let setup = Setup::tiny("blk,halt").disk(&images[0], 1).chain(
        disk_spec("first", DiskBus::Scsi, 1),
        &[(images[1].as_path(), DiskFormat::Raw)],
    );
    let (mut vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    console.wait_for("PASS blk");
    let told = report(&mut link, "disk0").unwrap();
    assert!(told.writes.count > 0 && told.written_bytes > 0, "{told:?}");
    assert_eq!(told.layers[0].name, images[0].display().to_string());

    let grown = DISK_BYTES * 2;
    for name in ["disk0", "first"] {
        change(&mut link, name, DiskChange::Resize { size_bytes: grown }).unwrap();
        assert_eq!(report(&mut link, name).unwrap().size_bytes, grown);
        let shrink = DiskChange::Resize { size_bytes: DISK_BYTES };
        assert_eq!(change(&mut link, name, shrink), Err(RefusalKind::Failed));
    }
    assert_eq!(images[0].metadata().unwrap().len(), grown);

    let limits = DiskLimits {
        bytes_per_s: Some(ByteSize::from_mib(1)),
        ..DiskLimits::default()
    };
    change(&mut link, "first", DiskChange::Limit { limits }).unwrap();
    assert_eq!(report(&mut link, "first").unwrap().limits, limits);
    assert_eq!(
        change(&mut link, "none", DiskChange::Limit { limits }),
        Err(RefusalKind::NoSuchDisk)
    );

    let (chain, files) = open_chain(&[(images[2].clone(), DiskFormat::Raw)]);
    let attach = || VmRequest::Disk {
        disk: "second".parse().unwrap(),
        change: DiskChange::Attach {
            spec: Box::new(disk_spec("second", DiskBus::Scsi, 1)),
            chain: chain.clone(),
        },
    };
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    link.ask_with_files(attach(), &fds).unwrap();
    let twice = link.ask_with_files(attach(), &fds).unwrap_err();
    assert_eq!(twice.kind, RefusalKind::NoSuchDisk, "{}", twice.message);
    drop(files);
    // What was attached is there after a reset, and its image is taken until it is detached.
    link.ask(VmRequest::Reset).unwrap();
    assert!(report(&mut link, "second").is_some());
    let taken = || RawDisk::open(&images[2], RawOptions::named("c")).is_err();
    assert!(taken());
    change(&mut link, "second", DiskChange::Detach).unwrap();
    assert!(report(&mut link, "second").is_none() && !taken());
    assert_eq!(change(&mut link, "disk0", DiskChange::Detach), Err(RefusalKind::Failed));
    link.ask(VmRequest::Quit).unwrap();
    vmm.wait();
}

/// A new file in `folder` as the layer that a change brings.
fn new_layer(folder: &tempfile::TempDir, name: &str) -> (DiskLayer, OwnedFd) {
    let path = folder.path().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .unwrap();
    let layer = DiskLayer {
        name: path.display().to_string(),
        format: DiskFormat::Qcow2,
        writable: true,
        data_file: None,
    };
    (layer, file.into())
}

#[test]
fn a_snapshot_is_taken_and_streamed_while_a_guest_reads_and_writes() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = disk(&folder, "base", 0xee);
    let top = qcow2(&folder, "top", ("base", "raw"));
    let chain = [(top.as_path(), DiskFormat::Qcow2), (base.as_path(), DiskFormat::Raw)];
    let test = vec!["blk,blk-verify"; 40].join(",");
    let setup = Setup::tiny(&test).chain(disk_spec("disk", DiskBus::Virtio, 2), &chain);
    let (mut vmm, mut link) = Vmm::boot(setup);
    vmm.console().wait_for("PASS blk-verify");
    let (overlay, file) = new_layer(&folder, "overlay");
    let name = overlay.name.clone();
    let request = |change| VmRequest::Disk {
        disk: "disk".parse().unwrap(),
        change,
    };
    link.ask_with_files(
        request(DiskChange::Snapshot {
            overlay,
            backing: "top".to_owned(),
        }),
        &[file.as_fd()],
    )
    .unwrap();
    // Its lock lasts as long as anybody has it open.
    drop(file);
    let frozen = std::fs::read(&top).unwrap();
    link.ask(request(DiskChange::Stream)).unwrap();
    let state = link.wait_for(|event| match event {
        VmEvent::DiskJob { state, .. } if !matches!(state, DiskJobState::Running { .. }) => Some(state.clone()),
        _ => None,
    });
    assert_eq!(state, DiskJobState::Done);
    let layers = report(&mut link, "disk").unwrap().layers;
    assert_eq!((layers.len(), &layers[0].name), (1, &name));
    assert_eq!(
        std::fs::read(&top).unwrap(),
        frozen,
        "what was on top is not written any more"
    );
    let ended = link.wait_for_report();
    assert_eq!(ended.reason, EndReason::DebugExit { code: 0 }, "{}", vmm.console_log());
    vmm.wait();
    let overlay = folder.path().join("overlay");
    let alone = [(overlay.as_path(), DiskFormat::Qcow2)];
    let seen = run_to_end(Setup::tiny("blk-verify").chain(disk_spec("disk", DiskBus::Virtio, 1), &alone));
    assert!(seen.contains("PASS blk-verify"), "{seen}");
}
