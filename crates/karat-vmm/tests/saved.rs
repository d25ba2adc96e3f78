//! Tiny guests on the machine's own KVM that are saved by one process and go on in another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod harness;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control::{EndReason, RefusalKind, VmRequest, VmState};
use harness::{Console, Link, PATIENCE, Setup, Vmm, can_run};
use savestate::SavedState;
use spec::{DiskBus, DiskFormat};

/// A counting guest.
fn counting() -> Setup {
    Setup::tiny("count")
}

/// Pauses and saves a machine, and ends its process without a chance to do anything more. What the guest has said.
fn save_and_kill(mut vmm: Vmm, mut link: Link, directory: &Path) -> String {
    link.ask(VmRequest::Pause).unwrap();
    vmm.save(&mut link, directory).unwrap();
    // What was printed before the pause reaches the log still.
    std::thread::sleep(Duration::from_millis(50));
    vmm.signal("KILL");
    assert!(!vmm.wait().success());
    vmm.console_log()
}

/// A new process with the machine that was saved in `directory`, still paused.
fn restore(mut setup: Setup, directory: &Path) -> (Vmm, Link) {
    setup.saved = Some(directory.to_path_buf());
    let vmm = Vmm::spawn();
    let mut link = vmm.link();
    assert_eq!(vmm.create(&mut link, setup).unwrap().state, VmState::Paused);
    (vmm, link)
}

fn wait_for_count(console: &mut Console, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while console.seen.matches("count ").count() < count {
        assert!(
            Instant::now() < deadline && console.read(),
            "no {count} counts:\n{}",
            console.seen
        );
    }
}

/// Has the guest look at all it has counted, and end.
fn finish(vmm: &mut Vmm) {
    // A reader that leaves at once may leave before it was listened to.
    let mut console = vmm.console();
    console.type_in("q");
    console.wait_for("PASS count");
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 0 });
}

/// All lines of the guest over all its processes: every count once, in order.
fn check_counts(said: &str) -> u64 {
    let mut next = 0;
    // The last line may have been cut off by a pause; it goes on in the next process.
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    for line in whole.lines() {
        if let Some(number) = line.strip_prefix("count ") {
            assert_eq!(number.parse(), Ok(next), "a gap in: {said}");
            next += 1;
        }
        assert!(!line.starts_with("FAIL"), "{said}");
    }
    next
}

/// Everything in a saved machine but what goes on while it is paused: vCPUs have clocks.
fn devices_of(directory: &Path) -> Vec<savestate::Section> {
    let state = SavedState::parse(&std::fs::read(directory.join("state")).unwrap()).unwrap();
    let sections = state.sections().iter();
    sections
        .filter(|section| !["vcpu", "kvm-chips"].contains(&section.kind()))
        .cloned()
        .collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn counting_goes_on_without_a_gap_in_a_new_process() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let (vmm, link) = Vmm::boot(counting());
    let mut console = vmm.console();
    wait_for_count(&mut console, 20);
    console.type_in("a");
    console.wait_for("typed a");
    let mut said = save_and_kill(vmm, link, &folder.path("0"));
    for round in 0..5 {
        let (vmm, mut link) = restore(counting(), &folder.path(round.to_string()));
        // Saved again before it has run, it is the same to the byte.
        let again = folder.path("again");
        let _ = std::fs::remove_dir_all(&again);
        vmm.save(&mut link, &again).unwrap();
        let memory = |directory: &Path| std::fs::read(directory.join("memory")).unwrap();
        assert!(
            memory(&again) == memory(&folder.path(round.to_string())),
            "memory differs"
        );
        assert_eq!(devices_of(&again), devices_of(&folder.path(round.to_string())));
        assert_eq!(link.ask(VmRequest::Resume).unwrap().state, VmState::Running);
        let mut console = vmm.console();
        wait_for_count(&mut console, 10);
        console.type_in("b");
        console.wait_for("typed b");
        said += &save_and_kill(vmm, link, &folder.path((round + 1).to_string()));
        check_counts(&said);
    }
    let (mut vmm, mut link) = restore(counting(), &folder.path("5"));
    link.ask(VmRequest::Resume).unwrap();
    finish(&mut vmm);
    said += &vmm.console_log();
    assert!(check_counts(&said) >= 70, "{said}");
    assert!(said.contains("PASS count"), "{said}");
    let size = std::fs::metadata(folder.path("0/memory")).unwrap();
    assert!(size.blocks() * 512 < size.len() / 2, "zero pages take no room");
}

#[test]
fn memory_that_is_mapped_serves_several_machines_and_stays_as_it_is() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let setup = || counting().memory(1 << 30);
    let (vmm, link) = Vmm::boot(setup());
    wait_for_count(&mut vmm.console(), 20);
    let said = save_and_kill(vmm, link, &folder.path("0"));
    let before = std::fs::read(folder.path("0/state")).unwrap();
    let mut saved = setup();
    saved.lazy = true;
    let began = Instant::now();
    let (first, mut link) = restore(saved, &folder.path("0"));
    println!(
        "created from 1 GiB of mapped memory {:?} after the start of the process",
        began.elapsed()
    );
    link.ask(VmRequest::Resume).unwrap();
    wait_for_count(&mut first.console(), 10);
    let second_said = save_and_kill(first, link, &folder.path("1"));
    check_counts(&(said.clone() + &second_said));
    // What the first has written is in neither file of the saved machine.
    assert_eq!(std::fs::read(folder.path("0/state")).unwrap(), before);
    for lazy in [true, false] {
        for (directory, mut all) in [("0", said.clone()), ("1", said.clone() + &second_said)] {
            let mut saved = setup();
            saved.lazy = lazy;
            let (mut vmm, mut link) = restore(saved, &folder.path(directory));
            link.ask(VmRequest::Resume).unwrap();
            finish(&mut vmm);
            all += &vmm.console_log();
            check_counts(&all);
        }
    }
}

/// The generation id as it is in a saved machine, and the events that its guest was not told of yet.
fn generation_of(directory: &Path) -> ([u8; 16], Vec<u8>) {
    let mut id = [0; 16];
    let memory = std::fs::File::open(directory.join("memory")).unwrap();
    // All of this RAM is before the first hole.
    memory.read_exact_at(&mut id, 0xe_f000).unwrap();
    let sections = devices_of(directory).into_iter();
    let mut events = sections.filter(|section| section.kind() == "acpi-events");
    (id, events.next().unwrap().body().to_vec())
}

#[test]
fn a_copy_has_another_generation_and_a_machine_that_moves_has_not() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let (vmm, link) = Vmm::boot(counting());
    wait_for_count(&mut vmm.console(), 3);
    save_and_kill(vmm, link, &folder.path("0"));
    let (first, quiet) = generation_of(&folder.path("0"));
    assert_ne!(first, [0; 16]);
    let mut seen = vec![first];
    for (number, copy, lazy) in [("1", false, false), ("2", true, false), ("3", true, true)] {
        let mut setup = counting();
        (setup.copy, setup.lazy) = (copy, lazy);
        let (vmm, mut link) = restore(setup, &folder.path("0"));
        vmm.save(&mut link, &folder.path(number)).unwrap();
        let (id, events) = generation_of(&folder.path(number));
        assert_eq!(events != quiet, copy, "{events:?}");
        assert_eq!(seen.contains(&id), !copy, "{id:?}");
        seen.push(id);
        // It goes on all the same.
        link.ask(VmRequest::Resume).unwrap();
        let mut vmm = vmm;
        finish(&mut vmm);
    }
    // What was mapped is as it was.
    assert_eq!(generation_of(&folder.path("0")).0, first);
}

#[test]
fn a_disk_goes_on_with_its_queue() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let image = folder.path("disk");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let setup = || {
        let mut setup = counting().disk(&image, 1).cpus(2);
        setup.parts.cmdline = "test=count disk=yes".to_owned();
        setup
    };
    let (vmm, link) = Vmm::boot(setup());
    wait_for_count(&mut vmm.console(), 5);
    let mut said = save_and_kill(vmm, link, &folder.path("0"));
    for round in 0..3 {
        let (vmm, mut link) = restore(setup(), &folder.path(round.to_string()));
        link.ask(VmRequest::Resume).unwrap();
        wait_for_count(&mut vmm.console(), 5);
        said += &save_and_kill(vmm, link, &folder.path((round + 1).to_string()));
        check_counts(&said);
    }
    let (mut vmm, mut link) = restore(setup(), &folder.path("3"));
    link.ask(VmRequest::Resume).unwrap();
    finish(&mut vmm);
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let (vmm, link) = Vmm::boot(counting());
    wait_for_count(&mut vmm.console(), 3);
    save_and_kill(vmm, link, &folder.path("0"));
    let refusal = |mut setup: Setup| {
        setup.saved = Some(folder.path("0"));
        let mut vmm = Vmm::spawn();
        let mut link = vmm.link();
        let refusal = vmm.create(&mut link, setup).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::BadFile, "{}", refusal.message);
        assert_eq!(vmm.report().reason, EndReason::BuildFailed);
        refusal.message
    };
    let cases = [
        (counting().cpus(2), "2 vcpus, and had 1"),
        (counting().memory(64 << 20), "bytes of memory"),
    ];
    for (setup, why) in cases {
        let message = refusal(setup);
        assert!(message.contains(why), "{message}");
    }
    let image = folder.path("disk");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let message = refusal(counting().disk(&image, 1));
    assert!(message.contains("section"), "{message}");
    let flip = |name: &str, offset: u64| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.path(name))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    };
    // Where the program is, which no guest leaves empty.
    flip("0/memory", 0x10_0000);
    assert!(refusal(counting()).contains("memory of the saved machine is damaged"));
    flip("0/memory", 0x10_0000);
    flip("0/state", 100);
    assert!(refusal(counting()).contains("checksum"));
    flip("0/state", 100);
    let (_vmm, mut link) = restore(counting(), &folder.path("0"));
    link.ask(VmRequest::Resume).unwrap();
}

#[test]
fn a_directory_with_a_saved_machine_is_left_alone() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let (vmm, mut link) = Vmm::boot(counting());
    wait_for_count(&mut vmm.console(), 3);
    let directory = folder.path("0");
    assert_eq!(
        vmm.save(&mut link, &directory).unwrap_err().kind,
        RefusalKind::WrongState
    );
    link.ask(VmRequest::Pause).unwrap();
    vmm.save(&mut link, &directory).unwrap();
    let before = std::fs::read(directory.join("state")).unwrap();
    let refusal = vmm.save(&mut link, &directory).unwrap_err();
    assert!(refusal.message.contains("already"), "{}", refusal.message);
    assert_eq!(std::fs::read(directory.join("state")).unwrap(), before);
    link.ask(VmRequest::Resume).unwrap();
    wait_for_count(&mut vmm.console(), 10);
}

/// The machine of `tests/golden`, saved as this program does: the same sections as in the file of its version.
#[test]
fn the_golden_machine_has_the_sections_of_its_version() {
    if !can_run() {
        return;
    }
    let folder = Folder::new();
    let image = |name: &str| {
        let path = folder.path(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    };
    let scsi = spec::testing::disk("disk1", DiskBus::Scsi, 1);
    let mut setup = counting().disk(&image("blk"), 1).cpus(2);
    setup = setup.chain(scsi, &[(&image("scsi"), DiskFormat::Raw)]);
    setup.parts.cmdline = "test=count disk=yes".to_owned();
    let (vmm, mut link) = Vmm::boot(setup);
    let mut console = vmm.console();
    wait_for_count(&mut console, 5);
    link.ask(VmRequest::Pause).unwrap();
    console.type_in("waiting");
    std::thread::sleep(Duration::from_millis(50));
    vmm.save(&mut link, &folder.path("0")).unwrap();
    let made = std::fs::read(folder.path("0/state")).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let golden = golden.join(env!("CARGO_PKG_VERSION")).join("state");
    if std::env::var_os("KARAT_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&golden, &made).unwrap();
    }
    let titles = |bytes: &[u8]| -> Vec<String> {
        let state = SavedState::parse(bytes).unwrap();
        let sections = state.sections().iter();
        sections
            .map(|section| format!("{}, version {}", section.title(), section.version()))
            .collect()
    };
    let kept = std::fs::read(golden).expect("tests/golden has a saved machine of this version");
    assert_eq!(titles(&made), titles(&kept), "see tests/golden/README.md");
}
