//! Chains on real files.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use std::sync::mpsc;

use control::{DiskJob, DiskJobState, DiskLayer};
use disk_qcow2::ops::{BackingName, CreateOptions, create};
use disk_raw::{RawDisk, RawOptions, Role};
use guestmem::IoBuf;
use spec::{DiskCache, DiskFormat};
use uring::Executor;

use super::*;
use crate::disks::{JobNews, Tell};
use crate::files::LayerFiles;
use crate::testing;

const SIZE_BYTES: u64 = 8 << 20;

struct Rig(tempfile::TempDir);

impl Rig {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn raw(&self, name: &str, byte: u8, len: usize) {
        std::fs::write(self.path(name), vec![byte; len]).unwrap();
    }

    fn qcow2(&self, name: &str, backing: Option<(&str, &str)>) {
        let path = self.path(name);
        File::create_new(&path).unwrap();
        let options = RawOptions {
            role: Role::Container,
            ..RawOptions::named(name)
        };
        let file = RawDisk::from_fd(fd(&path, true), options).unwrap();
        let mut options = CreateOptions::of_size(SIZE_BYTES);
        options.backing = backing.map(|(name, format)| BackingName {
            name: name.to_owned(),
            format: format.to_owned(),
        });
        let mut executor = Executor::new(16).unwrap();
        let made = executor.block_on(async { create(&*file.open_queue().unwrap(), None, &options).await });
        made.unwrap().unwrap();
    }

    /// Names and formats, top first.
    fn files(&self, layers: &[(&str, DiskFormat)], writable: bool) -> ChainFiles {
        let files = layers.iter().zip(0..).map(|(&(name, format), place)| {
            let writable = writable && place == 0;
            LayerFiles {
                layer: DiskLayer {
                    format,
                    writable,
                    ..testing::layer(name)
                },
                image: fd(&self.path(name), writable),
                data: None,
            }
        });
        ChainFiles(files.collect())
    }

    fn open(&self, layers: &[(&str, DiskFormat)]) -> Result<Stack, StackError> {
        Stack::open(&testing::disk("disk"), self.files(layers, true))
    }
}

fn fd(path: &Path, writable: bool) -> OwnedFd {
    File::options().read(true).write(writable).open(path).unwrap().into()
}

fn read(stack: &Stack, offset: u64) -> u8 {
    let act = async {
        let io = stack.top.open_queue().unwrap();
        let (read, bufs) = io.read(offset, vec![IoBuf::heap(512, 512).unwrap()]).await;
        read.unwrap();
        let bytes = bufs[0].to_vec();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    };
    block_on("disk", act).unwrap()
}

fn write(stack: &Stack, offset: u64, byte: u8) {
    let act = async {
        let io = stack.top.open_queue().unwrap();
        let (written, _) = io.write(offset, vec![IoBuf::from_bytes(&[byte; 512]).unwrap()]).await;
        written
    };
    block_on("disk", act).unwrap().unwrap();
}

const CHAIN: [(&str, DiskFormat); 3] = [
    ("top", DiskFormat::Qcow2),
    ("middle", DiskFormat::Qcow2),
    ("base", DiskFormat::Raw),
];

fn three_deep() -> Rig {
    let rig = Rig::new();
    // Smaller than what is on it, and no whole sectors.
    rig.raw("base", b'b', (1 << 20) + 100);
    rig.qcow2("middle", Some(("base", "raw")));
    rig.qcow2("top", Some(("middle", "qcow2")));
    rig
}

#[test]
fn a_chain_shows_every_layer_and_keeps_what_is_written_on_top() {
    let rig = three_deep();
    let middle = rig.open(&CHAIN[1..]).unwrap();
    write(&middle, 512, b'm');
    middle.close().unwrap();
    let base = std::fs::read(rig.path("base")).unwrap();
    let stack = rig.open(&CHAIN).unwrap();
    write(&stack, 4096, b't');
    assert_eq!(
        [0, 512, 4096, 2 << 20].map(|at| read(&stack, at)),
        [b'b', b'm', b't', 0]
    );
    stack.close().unwrap();
    let stack = rig.open(&CHAIN).unwrap();
    assert_eq!(
        [0, 512, 4096, 2 << 20].map(|at| read(&stack, at)),
        [b'b', b'm', b't', 0]
    );
    assert_eq!(std::fs::read(rig.path("base")).unwrap(), base);
}

#[test]
fn a_chain_grows_and_is_limited() {
    let rig = three_deep();
    let mut stack = rig.open(&CHAIN).unwrap();
    stack.grow(SIZE_BYTES * 2).unwrap();
    assert_eq!(stack.top().geometry().size_bytes, SIZE_BYTES * 2);
    assert_eq!(read(&stack, SIZE_BYTES * 2 - 512), 0);
    let refused = stack.grow(SIZE_BYTES).unwrap_err();
    assert!(refused.to_string().contains("disk"), "{refused}");
    let limits = DiskLimits {
        iops: Some(7),
        ..DiskLimits::default()
    };
    stack.limit(limits);
    assert_eq!(
        stack.throttling.limits().operations.map(|rate| rate.per_second),
        Some(7)
    );
    stack.lift_limits();
    assert_eq!(stack.throttling.limits(), Limits::default());
    stack.limit_again();
    assert_eq!(
        (stack.limits(), stack.throttling.limits()),
        (limits, limits::of(&limits))
    );
}

#[test]
fn what_is_wrong_is_told_with_the_names_of_disk_and_image() {
    let rig = three_deep();
    let told = |result: Result<Stack, StackError>| crate::story::whole(&result.err().unwrap());
    std::fs::write(rig.path("junk"), vec![7; 1 << 20]).unwrap();
    let junk = told(rig.open(&[("junk", DiskFormat::Qcow2)]));
    assert!(junk.contains("disk disk") && junk.contains("junk"), "{junk}");
    let backed = told(rig.open(&[("base", DiskFormat::Raw), ("junk", DiskFormat::Raw)]));
    assert!(backed.contains("base is raw"), "{backed}");
    let alone = told(rig.open(&CHAIN[..1]));
    assert!(alone.contains("top") && alone.contains("middle"), "{alone}");
    let none = told(rig.open(&[]));
    assert!(none.contains("no image"), "{none}");
    let open = rig.files(&CHAIN, false);
    let reading = told(Stack::open(&testing::disk("disk"), open));
    assert!(reading.contains("for reading and not for writing"), "{reading}");
    let mut large = testing::disk("disk");
    large.sector = spec::DiskSector::B4096;
    let sectors = told(Stack::open(&large, rig.files(&CHAIN, true)));
    assert!(sectors.contains("512 bytes"), "{sectors}");
}

#[test]
fn an_image_is_written_by_one_and_its_backing_read_by_many() {
    let rig = three_deep();
    let first = rig.open(&CHAIN).unwrap();
    assert!(rig.open(&CHAIN).is_err());
    rig.qcow2("other", Some(("middle", "qcow2")));
    let second = rig.open(&[("other", DiskFormat::Qcow2), CHAIN[1], CHAIN[2]]).unwrap();
    assert!(rig.open(&CHAIN[1..]).is_err(), "the backing of two disks is written");
    assert_eq!((read(&first, 0), read(&second, 0)), (b'b', b'b'));
}

/// Waits for the last word of a job.
fn outcome(stack: &mut Stack, news: &mpsc::Receiver<JobNews>) -> (DiskJob, DiskJobState) {
    while news.recv().unwrap() != JobNews::Ended {}
    stack.end_job().unwrap()
}

fn teller() -> (Tell, mpsc::Receiver<JobNews>) {
    let (sender, news) = mpsc::channel();
    (Box::new(move |word| _ = sender.send(word)), news)
}

fn new_layer(rig: &Rig, name: &str) -> LayerFiles {
    File::create_new(rig.path(name)).unwrap();
    rig.files(&[(name, DiskFormat::Qcow2)], true).0.remove(0)
}

#[test]
fn a_snapshot_leaves_what_was_and_a_stream_makes_the_overlay_stand_alone() {
    let rig = three_deep();
    let mut stack = rig.open(&CHAIN).unwrap();
    write(&stack, 0, b't');
    stack.snapshot(new_layer(&rig, "overlay"), "top".to_owned()).unwrap();
    let frozen = std::fs::read(rig.path("top")).unwrap();
    write(&stack, 512, b'o');
    assert_eq!([0, 512, 1024].map(|at| read(&stack, at)), [b't', b'o', b'b']);
    assert!(!stack.layers()[1].writable && stack.layers().len() == 4);
    let (tell, news) = teller();
    stack.begin_stream(tell).unwrap();
    assert_eq!(outcome(&mut stack, &news), (DiskJob::Stream, DiskJobState::Done));
    assert_eq!(stack.layers().len(), 1);
    write(&stack, 1024, b'n');
    stack.close().unwrap();
    assert_eq!(std::fs::read(rig.path("top")).unwrap(), frozen);
    let alone = rig.open(&[("overlay", DiskFormat::Qcow2)]).unwrap();
    assert_eq!(
        [0, 512, 1024, 1536].map(|at| read(&alone, at)),
        [b't', b'o', b'n', b'b']
    );
}

#[test]
fn a_mirror_is_a_copy_and_becomes_the_disk_where_that_is_asked_for() {
    let rig = three_deep();
    let mut stack = rig.open(&CHAIN).unwrap();
    for (name, pivot) in [("copy", false), ("pivot", true)] {
        rig.qcow2(name, None);
        let target = rig.files(&[(name, DiskFormat::Qcow2)], true).0.remove(0);
        let (tell, news) = teller();
        let note = pivot.then(|| File::create_new(rig.path("note")).unwrap());
        stack.begin_mirror(target, true, note, tell).unwrap();
        assert_eq!(
            outcome(&mut stack, &news),
            (DiskJob::Mirror, DiskJobState::Done),
            "{name}"
        );
    }
    assert_eq!(stack.layers()[0].name, "pivot");
    assert_eq!(std::fs::read(rig.path("note")).unwrap(), control::PIVOTED);
    let told = stack.told().unwrap();
    assert_eq!((told.target.as_str(), &told.state), ("pivot", &DiskJobState::Done));
    write(&stack, 0, b'p');
    stack.close().unwrap();
    for (name, byte) in [("copy", b'b'), ("pivot", b'p')] {
        let alone = rig.open(&[(name, DiskFormat::Qcow2)]).unwrap();
        assert_eq!((read(&alone, 0), read(&alone, 512)), (byte, b'b'), "{name}");
    }
    let before = rig.open(&CHAIN).unwrap();
    assert_eq!(read(&before, 0), b'b', "the disk that was is as it was");
}

/// Whether all that was written to a file is past the host's page cache: the flag belongs to the open file, which `fd` shares.
fn is_direct(fd: &File) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & O_DIRECT != 0
}

/// `O_DIRECT` on x86-64 (open(2)).
const O_DIRECT: u32 = 0o40000;

#[test]
fn what_takes_a_disks_place_uses_the_page_cache_as_the_disk_did() {
    // Beside the program, since not every kernel has this on tmpfs.
    let rig = Rig(tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap());
    rig.raw("base", b'b', 1 << 20);
    for (cache, direct) in [(DiskCache::Direct, true), (DiskCache::Cached, false)] {
        let mut spec = testing::disk("disk");
        spec.cache = cache;
        let mut stack = Stack::open(&spec, rig.files(&[("base", DiskFormat::Raw)], true)).unwrap();
        let shared = |files: &LayerFiles| File::from(files.image.try_clone().unwrap());
        let overlay = new_layer(&rig, &format!("overlay-{direct}"));
        let file = shared(&overlay);
        stack.snapshot(overlay, "base".to_owned()).unwrap();
        write(&stack, 0, b'o');
        assert_eq!(is_direct(&file), direct, "overlay");
        let name = format!("target-{direct}");
        rig.raw(&name, 0, 1 << 20);
        let target = rig.files(&[(&name, DiskFormat::Raw)], true).0.remove(0);
        let file = shared(&target);
        let note = File::create_new(rig.path(&format!("note-{direct}"))).unwrap();
        let (tell, news) = teller();
        stack.begin_mirror(target, true, Some(note), tell).unwrap();
        assert_eq!(outcome(&mut stack, &news), (DiskJob::Mirror, DiskJobState::Done));
        assert_eq!(is_direct(&file), direct, "target");
        assert_eq!([0, 512].map(|at| read(&stack, at)), [b'o', b'b']);
        stack.close().unwrap();
    }
}

#[test]
fn a_raw_disk_has_nothing_to_stream_and_a_read_only_one_no_snapshots() {
    let rig = three_deep();
    rig.raw("raw", 1, 1 << 20);
    let mut raw = rig.open(&[("raw", DiskFormat::Raw)]).unwrap();
    assert!(raw.begin_stream(teller().0).is_err());
    assert!(!raw.cancel_job() && raw.end_job().is_none());
    let mut spec = testing::disk("disk");
    spec.read_only = true;
    let mut reader = Stack::open(&spec, rig.files(&CHAIN, false)).unwrap();
    assert!(reader.snapshot(new_layer(&rig, "overlay"), "top".to_owned()).is_err());
}
