//! The conformance suite on real files, cached and direct; a model with injected faults; locks; refusals.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use disk::conformance::{self, SIZE_BYTES, pattern};
use disk::{
    Access, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, ExtentKind, Fault, FaultPlan, Faulty, Strike,
    ZeroMode,
};
use guestmem::{GuestAddress, GuestMemory, IoBuf, MemoryConfig};
use proptest::prelude::*;
use tempfile::NamedTempFile;
use uring::{EngineChoice, Executor};

use crate::*;

/// Blocks on one future with an executor of few entries.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    Executor::new(8).unwrap().block_on(future).unwrap()
}

/// Likewise, on threads instead of a ring.
fn block_on_threads<T>(future: impl Future<Output = T>) -> T {
    let executor = Executor::with_engine(8, EngineChoice::Threads);
    executor.unwrap().block_on(future).unwrap()
}

fn image(size_bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size_bytes).unwrap();
    file
}

fn options(cache: CacheMode, sector: SectorSize) -> RawOptions {
    RawOptions {
        cache,
        sector,
        ..RawOptions::named("test.raw")
    }
}

/// A fresh disk; `None`, and a word about it, where the temporary directory can not do direct I/O in such sectors.
fn disk(size_bytes: u64, cache: CacheMode, sector: SectorSize) -> Option<RawDisk> {
    match RawDisk::open(image(size_bytes).path(), options(cache, sector)) {
        Err(error @ (OpenError::NoDirect { .. } | OpenError::DirectUnit { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        opened => Some(opened.unwrap()),
    }
}

fn conforms(cache: CacheMode, sector: SectorSize) {
    if disk(SIZE_BYTES, cache, sector).is_some() {
        let make = || -> Arc<dyn Disk> { Arc::new(disk(SIZE_BYTES, cache, sector).unwrap()) };
        conformance::all(make, |case: DiskFuture<'_, ()>| block_on(case));
    }
}

#[test]
fn cached_files_conform() {
    conforms(CacheMode::Cached, SectorSize::B512);
}

#[test]
fn cached_files_with_large_sectors_conform() {
    conforms(CacheMode::Cached, SectorSize::B4096);
}

#[test]
fn direct_files_conform() {
    conforms(CacheMode::Direct, SectorSize::B512);
}

#[test]
fn direct_files_with_large_sectors_conform() {
    conforms(CacheMode::Direct, SectorSize::B4096);
}

#[test]
fn files_conform_without_a_ring() {
    for cache in [CacheMode::Cached, CacheMode::Direct] {
        if disk(SIZE_BYTES, cache, SectorSize::B512).is_some() {
            let make = || -> Arc<dyn Disk> { Arc::new(disk(SIZE_BYTES, cache, SectorSize::B512).unwrap()) };
            conformance::all(make, |case: DiskFuture<'_, ()>| block_on_threads(case));
        }
    }
}

/// Stores that know no fallocate at all fall back to writing zeroes, and ignore discards.
#[test]
fn files_without_fallocate_conform() {
    let make = || -> Arc<dyn Disk> {
        let disk = disk(SIZE_BYTES, CacheMode::Cached, SectorSize::B512).unwrap();
        disk.forget_fallocate();
        Arc::new(disk)
    };
    conformance::all(make, |case| block_on(case));
}

#[test]
fn loop_devices_conform() {
    for (unit, sector) in [(512, SectorSize::B512), (4096, SectorSize::B4096)] {
        let Some(device) = LoopDevice::attach(unit) else { return };
        for cache in [CacheMode::Cached, CacheMode::Direct] {
            let make = || -> Arc<dyn Disk> {
                device.backing.as_file().set_len(0).unwrap();
                device.backing.as_file().set_len(SIZE_BYTES).unwrap();
                let disk = RawDisk::open(device.path(), options(cache, sector)).unwrap();
                block_on(async {
                    let io = disk.open_queue().unwrap();
                    io.write_zeroes(0, SIZE_BYTES, ZeroMode::MayUnmap).await.unwrap();
                });
                Arc::new(disk)
            };
            conformance::all(make, |case| block_on(case));
        }
    }
}

#[test]
fn devices_of_large_sectors_take_small_ones_through_the_cache_only() {
    let Some(device) = LoopDevice::attach(4096) else { return };
    let error = RawDisk::open(device.path(), options(CacheMode::Direct, SectorSize::B512)).err();
    assert!(
        matches!(error, Some(OpenError::DirectUnit { needed_bytes: 4096, .. })),
        "{error:?}"
    );
    let disk = RawDisk::open(device.path(), options(CacheMode::Cached, SectorSize::B512)).unwrap();
    assert_eq!(disk.geometry().physical_sector_bytes, 4096);
    let bytes = pattern(4096, 1);
    block_on(async {
        let io = disk.open_queue().unwrap();
        io.write(0, vec![IoBuf::from_bytes(&bytes).unwrap()]).await.0.unwrap();
        io.write_zeroes(512, 512, ZeroMode::KeepAllocated).await.unwrap();
        io.discard(1024, 512).await.unwrap();
        io.flush().await.unwrap();
        let (result, bufs) = io.read(0, vec![IoBuf::heap(4096, 4096).unwrap()]).await;
        result.unwrap();
        let now = bufs[0].to_vec();
        assert!(now[..512] == bytes[..512] && now[512..1024] == [0; 512] && now[1536..] == bytes[1536..]);
    });
}

#[test]
fn devices_give_space_back_without_fallocate() {
    use std::os::unix::fs::MetadataExt;
    let Some(device) = LoopDevice::attach(512) else { return };
    let disk = RawDisk::open(device.path(), options(CacheMode::Direct, SectorSize::B512)).unwrap();
    // As on kernels and devices that know BLKDISCARD only.
    disk.forget_fallocate();
    let blocks = || device.backing.as_file().metadata().unwrap().blocks() * 512;
    block_on(async {
        let io = disk.open_queue().unwrap();
        let data = IoBuf::from_bytes(&pattern(1 << 20, 2)).unwrap();
        io.write(0, vec![data]).await.0.unwrap();
        io.flush().await.unwrap();
        let full = blocks();
        io.discard(0, 1 << 20).await.unwrap();
        io.flush().await.unwrap();
        assert!(blocks() + (900 << 10) <= full, "{} of {full}", blocks());
    });
}

#[test]
fn devices_grow_once_they_were_extended() {
    let Some(device) = LoopDevice::attach(512) else { return };
    let disk = RawDisk::open(device.path(), options(CacheMode::Cached, SectorSize::B512)).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        let error = io.grow(2 * SIZE_BYTES).await.unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::Unsupported);
        device.backing.as_file().set_len(2 * SIZE_BYTES).unwrap();
        let told = Command::new("losetup").args(["--set-capacity", &device.name]).status();
        assert!(told.unwrap().success());
        io.grow(2 * SIZE_BYTES).await.unwrap();
        assert_eq!(disk.geometry().size_bytes, 2 * SIZE_BYTES);
        let last = IoBuf::from_bytes(&[3; 512]).unwrap();
        io.write(2 * SIZE_BYTES - 512, vec![last]).await.0.unwrap();
    });
}

/// A block device on a file; detached when dropped.
struct LoopDevice {
    backing: NamedTempFile,
    name: String,
}

impl LoopDevice {
    /// `None`, and a word about it, where this user or host can not have one.
    fn attach(sector_bytes: u32) -> Option<Self> {
        let backing = image(SIZE_BYTES);
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector_bytes.to_string()])
            .arg(backing.path())
            .output();
        match made {
            Ok(made) if made.status.success() => {
                let name = String::from_utf8(made.stdout).unwrap().trim().to_owned();
                Some(Self { backing, name })
            }
            _ => {
                eprintln!("skipped: no loop device to be had (needs losetup, /dev/loop-control and root)");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        Path::new(&self.name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.name]).status();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { seed: u64, piece: usize },
    Read { piece: usize },
    Zero(ZeroMode),
    Discard,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let piece = prop_oneof![Just(512_usize), Just(4096), 1_usize..9000];
    prop_oneof![
        3 => (any::<u64>(), piece.clone()).prop_map(|(seed, piece)| Step::Write { seed, piece }),
        3 => piece.prop_map(|piece| Step::Read { piece }),
        1 => Just(Step::Zero(ZeroMode::MayUnmap)),
        1 => Just(Step::Zero(ZeroMode::KeepAllocated)),
        1 => Just(Step::Discard),
        1 => Just(Step::Flush),
    ]
}

const MODEL_SECTORS: u64 = 1200;

/// A step, where it goes (sectors), and whether a fault strikes it.
type Planned = (Step, u64, u64, Option<Strike>);

fn planned() -> impl Strategy<Value = Planned> {
    let strike = prop_oneof![8 => Just(None), 1 => Just(Some(Strike::Before)), 1 => Just(Some(Strike::After))];
    // Up to 600 sectors: longer than one bounce piece.
    (step(), 0..MODEL_SECTORS, prop_oneof![0_u64..20, 0_u64..600], strike)
}

/// Applies one step to disk and model, and compares what it reads.
async fn follow(io: &dyn DiskIo, plan: &FaultPlan, model: &mut [u8], (step, first, count, strike): Planned) {
    let count = count.min(MODEL_SECTORS - first);
    let (offset, len) = (first * 512, count * 512);
    let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
    let op = match step {
        Step::Write { .. } => DiskOp::Write,
        Step::Read { .. } => DiskOp::Read,
        Step::Zero(_) => DiskOp::WriteZeroes,
        Step::Discard => DiskOp::Discard,
        Step::Flush => DiskOp::Flush,
    };
    plan.clear();
    // A fault strikes what touches bytes; an empty request touches none.
    let strike = strike.filter(|_| len > 0 || op == DiskOp::Flush);
    if let Some(strike) = strike {
        plan.inject(Fault {
            strike,
            ..Fault::always(op, DiskErrorKind::Io)
        });
    }
    let done = strike != Some(Strike::Before);
    let result = match step {
        Step::Write { seed, piece } => {
            let bytes = pattern(range.len(), seed);
            let bufs = bytes
                .chunks(piece)
                .map(|chunk| IoBuf::from_bytes(chunk).unwrap())
                .collect();
            let (result, _) = io.write(offset, bufs).await;
            if done {
                model[range].copy_from_slice(&bytes);
            }
            result
        }
        Step::Read { piece } => {
            let bufs = model[range.clone()]
                .chunks(piece)
                .map(|chunk| IoBuf::heap(chunk.len(), 1).unwrap())
                .collect();
            let (result, bufs) = io.read(offset, bufs).await;
            let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
            assert!(!done || bytes == model[range], "read of {len} bytes at {offset}");
            result
        }
        Step::Zero(mode) => {
            let result = io.write_zeroes(offset, len, mode).await;
            if done {
                model[range].fill(0);
            }
            result
        }
        Step::Discard => {
            let result = io.discard(offset, len).await;
            // What a discarded sector reads as is the disk's choice; from now on it stands by it.
            let buf = IoBuf::heap(range.len(), 1).unwrap();
            let (read, bufs) = io.read(offset, vec![buf]).await;
            read.unwrap();
            let now = bufs[0].to_vec();
            for (new, old) in now.chunks(512).zip(model[range.clone()].chunks(512)) {
                assert!(
                    new == old || (done && new.iter().all(|&b| b == 0)),
                    "discard at {offset}"
                );
            }
            model[range].copy_from_slice(&now);
            result
        }
        Step::Flush => io.flush().await,
    };
    assert_eq!(result.is_err(), strike.is_some(), "{op}");
}

fn model_holds(cache: CacheMode, plans: Vec<Planned>) {
    let Some(raw) = disk(MODEL_SECTORS * 512, cache, SectorSize::B512) else {
        return;
    };
    let plan = FaultPlan::new();
    let disk = Faulty::new(Arc::new(raw), plan.clone());
    block_on(async {
        let io = disk.open_queue().unwrap();
        let mut model = vec![0; usize::try_from(MODEL_SECTORS * 512).unwrap()];
        for planned in plans {
            follow(&*io, &plan, &mut model, planned).await;
        }
        plan.clear();
        let (result, bufs) = io.read(0, vec![IoBuf::heap(model.len(), 4096).unwrap()]).await;
        result.unwrap();
        assert!(bufs[0].to_vec() == model, "the whole disk");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cached_files_follow_the_model_under_faults(plans in prop::collection::vec(planned(), 1..40)) {
        model_holds(CacheMode::Cached, plans);
    }

    #[test]
    fn direct_files_follow_the_model_under_faults(plans in prop::collection::vec(planned(), 1..40)) {
        model_holds(CacheMode::Direct, plans);
    }
}

#[test]
fn guest_memory_reaches_the_file_without_a_stop() {
    let memory = GuestMemory::new(MemoryConfig {
        size_bytes: 1 << 20,
        hugepages: None,
        prefault: false,
    })
    .unwrap();
    for cache in [CacheMode::Cached, CacheMode::Direct] {
        let Some(disk) = disk(SIZE_BYTES, cache, SectorSize::B512) else {
            continue;
        };
        let guest = |gpa, len| IoBuf::guest(&memory, GuestAddress(gpa), len).unwrap();
        let bytes = pattern(8192, 3);
        guest(4096, 8192).copy_from(0, &bytes).unwrap();
        block_on(async {
            let io = disk.open_queue().unwrap();
            io.write(512, vec![guest(4096, 512), guest(4608, 7680)])
                .await
                .0
                .unwrap();
            // Once where direct I/O can go straight, once at an address it can not use.
            for gpa in [0x10000, 0x20001] {
                io.read(512, vec![guest(gpa, 8192)]).await.0.unwrap();
                assert!(guest(gpa, 8192).to_vec() == bytes, "{cache:?} at {gpa:#x}");
            }
        });
    }
}

fn open(path: &Path, access: Access) -> Result<RawDisk, OpenError> {
    RawDisk::open(
        path,
        RawOptions {
            access,
            ..RawOptions::named("test.raw")
        },
    )
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(SIZE_BYTES);
    let writer = open(file.path(), Access::ReadWrite).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let text = open(file.path(), access).err().unwrap().to_string();
        let expected = format!("disk image test.raw is in use by process {} (", std::process::id());
        assert!(text.starts_with(&expected), "{text}");
    }
    // A queue keeps the lock after the disk is gone.
    let mut executor = Executor::new(8).unwrap();
    let queue = writer.open_queue().unwrap();
    drop(writer);
    assert!(matches!(
        open(file.path(), Access::ReadOnly),
        Err(OpenError::InUse { .. })
    ));
    drop(queue);
    executor.block_on(async {}).unwrap();
    let readers = [(); 2].map(|()| open(file.path(), Access::ReadOnly).unwrap());
    assert!(matches!(
        open(file.path(), Access::ReadWrite),
        Err(OpenError::InUse { .. })
    ));
    drop(readers);
    open(file.path(), Access::ReadWrite).unwrap();
}

/// `qemu-io` that has an image open until it is dropped; `None` if it may not.
struct QemuIo(std::process::Child);

impl QemuIo {
    fn open(path: &Path, args: &[&str]) -> Option<Self> {
        let mut child = Command::new("qemu-io")
            .args(args)
            .args(["-f", "raw", path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // An answer comes when the image is open, and without an image nothing but the end.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let answer = BufReader::new(child.stdout.as_mut().unwrap()).lines().next();
        let opened = Self(child);
        answer.map(|_| opened)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_may_read_beside_a_reader_and_nobody_beside_a_writer() {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        eprintln!("SKIPPED: qemu-io is not installed");
        return;
    }
    let file = image(SIZE_BYTES);
    let path = file.path();
    let in_use = |access| {
        let error = open(path, access).err();
        matches!(&error, Some(OpenError::InUse { holders, .. }) if holders.to_string().contains("(qemu-io)"))
    };
    {
        let _writer = QemuIo::open(path, &[]).unwrap();
        assert!(in_use(Access::ReadOnly) && in_use(Access::ReadWrite));
    }
    {
        let _reader = QemuIo::open(path, &["-r"]).unwrap();
        assert!(in_use(Access::ReadWrite));
        let _both = open(path, Access::ReadOnly).unwrap();
        let _third = QemuIo::open(path, &["-r"]).unwrap();
        assert!(QemuIo::open(path, &[]).is_none());
    }
    let reader = open(path, Access::ReadOnly).unwrap();
    assert!(QemuIo::open(path, &["-r"]).is_some() && QemuIo::open(path, &[]).is_none());
    drop(reader);
    let _writer = open(path, Access::ReadWrite).unwrap();
    assert!(QemuIo::open(path, &["-r"]).is_none() && QemuIo::open(path, &[]).is_none());
}

/// Whoever has it until the lock is free may make it longer.
#[test]
fn the_size_is_that_under_the_lock() {
    let file = image(SIZE_BYTES);
    // A machine that is busy may let the lock's few milliseconds pass: then once more.
    for _ in 0..100 {
        file.as_file().set_len(SIZE_BYTES).unwrap();
        let holder = fs::File::options().read(true).write(true).open(file.path()).unwrap();
        uring::blocking::lock(&holder, uring::blocking::LockKind::Exclusive).unwrap();
        let leaves = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(15));
            holder.set_len(2 * SIZE_BYTES).unwrap();
        });
        let opened = open(file.path(), Access::ReadWrite);
        leaves.join().unwrap();
        match opened {
            Ok(disk) => return assert_eq!(disk.geometry().size_bytes, 2 * SIZE_BYTES),
            Err(error) => assert!(matches!(error, OpenError::InUse { .. }), "{error}"),
        }
    }
    panic!("the lock was never had");
}

/// Set for the other process of the next test.
const HOLD: &str = "KARAT_TEST_HOLD_IMAGE";

/// Does nothing by itself: it is what the other process of the next test runs.
#[test]
fn holder_process() {
    if let Some(path) = std::env::var_os(HOLD) {
        let _disk = open(Path::new(&path), Access::ReadWrite).unwrap();
        println!("\nholding");
        let _ = std::io::stdin().read(&mut [0]);
    }
}

#[test]
fn another_process_is_kept_out_and_named() {
    let file = image(SIZE_BYTES);
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::holder_process", "--nocapture"])
        .env(HOLD, file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(other.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "holding"));
    let error = open(file.path(), Access::ReadWrite).err().unwrap();
    let OpenError::InUse { holders, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        holders.0.iter().map(|holder| holder.pid).collect::<Vec<_>>(),
        [other.id()]
    );
    other.stdin.take().unwrap().write_all(b"\n").unwrap();
    // Reading on lets it finish what it has to say.
    said.for_each(drop);
    assert!(other.wait().unwrap().success());
    open(file.path(), Access::ReadWrite).unwrap();
}

#[test]
fn what_is_no_usable_disk_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &Path, access| open(path, access).err().unwrap().to_string();
    assert!(refused(directory.path(), Access::ReadOnly).contains("is a directory"));
    assert!(refused(&directory.path().join("none"), Access::ReadOnly).contains("can not be opened"));
    assert!(refused(Path::new("/dev/null"), Access::ReadWrite).contains("is a character device"));
    assert!(refused(image(0).path(), Access::ReadWrite).contains("has 0 bytes"));
    assert!(refused(image(1000).path(), Access::ReadWrite).contains("has 1000 bytes"));
    let read_only = fs::File::open(image(512).path()).unwrap();
    let error = RawDisk::from_fd(read_only.into(), RawOptions::named("passed"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("not opened for writing"), "{error}");
}

#[test]
fn passed_descriptors_lose_flags_that_would_harm() {
    let file = image(SIZE_BYTES);
    file.as_file().write_all_at(&[9; 512], 512).unwrap();
    let appending = fs::File::options().read(true).append(true).open(file.path()).unwrap();
    let disk = RawDisk::from_fd(appending.into(), RawOptions::named("passed")).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        io.write(0, vec![IoBuf::from_bytes(&[1; 512]).unwrap()])
            .await
            .0
            .unwrap();
    });
    let mut bytes = [0; 1024];
    file.as_file().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[0], bytes[512]), (1, 9));
    assert_eq!(file.as_file().metadata().unwrap().len(), SIZE_BYTES);
}

#[test]
fn a_read_only_disk_never_changes() {
    let file = image(SIZE_BYTES);
    let disk = open(file.path(), Access::ReadOnly).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        let kind = |result: Result<(), DiskError>| result.unwrap_err().kind();
        assert_eq!(
            kind(io.write(0, vec![IoBuf::heap(512, 1).unwrap()]).await.0),
            DiskErrorKind::ReadOnly
        );
        assert_eq!(kind(io.discard(0, 512).await), DiskErrorKind::ReadOnly);
        assert_eq!(
            kind(io.write_zeroes(0, 512, ZeroMode::MayUnmap).await),
            DiskErrorKind::ReadOnly
        );
        io.flush().await.unwrap();
        io.read(0, vec![IoBuf::heap(512, 1).unwrap()]).await.0.unwrap();
    });
}

#[test]
fn a_file_cut_short_below_fails_reads_and_nothing_else() {
    let file = image(SIZE_BYTES);
    let disk = open(file.path(), Access::ReadWrite).unwrap();
    file.as_file().set_len(4096).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        let (result, bufs) = io.read(2048, vec![IoBuf::heap(4096, 1).unwrap()]).await;
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind(), error.offset(), bufs.len()),
            (DiskErrorKind::Io, Some(2048), 1)
        );
        io.write(8192, vec![IoBuf::from_bytes(&[1; 512]).unwrap()])
            .await
            .0
            .unwrap();
        io.read(8192, vec![IoBuf::heap(512, 1).unwrap()]).await.0.unwrap();
    });
}

#[test]
fn discards_give_space_back_and_zeroes_keep_it_if_told_so() {
    use std::os::unix::fs::MetadataExt;
    let file = image(SIZE_BYTES);
    let disk = open(file.path(), Access::ReadWrite).unwrap();
    let blocks = || file.as_file().metadata().unwrap().blocks() * 512;
    block_on(async {
        let io = disk.open_queue().unwrap();
        io.write(0, vec![IoBuf::from_bytes(&pattern(1 << 20, 1)).unwrap()])
            .await
            .0
            .unwrap();
        io.flush().await.unwrap();
        let full = blocks();
        assert!(full >= 1 << 20);
        io.write_zeroes(0, 512 << 10, ZeroMode::KeepAllocated).await.unwrap();
        io.flush().await.unwrap();
        assert!(blocks() >= full - 4096, "{} of {full}", blocks());
        io.discard(0, 512 << 10).await.unwrap();
        io.write_zeroes(512 << 10, 256 << 10, ZeroMode::MayUnmap).await.unwrap();
        io.flush().await.unwrap();
        assert!(blocks() <= full - (700 << 10), "{} of {full}", blocks());
    });
}

#[test]
fn containers_have_any_length_and_grow_from_nothing() {
    for cache in [CacheMode::Cached, CacheMode::Direct] {
        let container = |len| {
            let file = image(len);
            let opened = RawDisk::open(
                file.path(),
                RawOptions {
                    role: Role::Container,
                    ..options(cache, SectorSize::B512)
                },
            );
            (file, opened)
        };
        let (file, opened) = container(0);
        let Ok(disk) = opened else {
            eprintln!("skipped: no direct I/O here");
            continue;
        };
        assert_eq!(disk.geometry().size_bytes, 0);
        block_on(async {
            let io = disk.open_queue().unwrap();
            io.grow(1024).await.unwrap();
            io.write(512, vec![IoBuf::from_bytes(&[7; 512]).unwrap()])
                .await
                .0
                .unwrap();
            assert_eq!(file.as_file().metadata().unwrap().len(), 1024);
        });
        let (file, opened) = container(5000);
        file.as_file().write_all_at(&[9; 5000], 0).unwrap();
        let disk = opened.unwrap();
        assert_eq!(disk.geometry().size_bytes, 5120);
        block_on(async {
            let io = disk.open_queue().unwrap();
            // Straight, across the end, and through buffers that direct I/O can not use.
            for bufs in [vec![4096, 1024], vec![5120], vec![1, 5119], vec![4999, 2, 119]] {
                let bufs = bufs.iter().map(|&len| IoBuf::from_bytes(&vec![0xee; len]).unwrap());
                let (result, bufs) = io.read(0, bufs.collect()).await;
                result.unwrap();
                let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
                assert!(bytes[..5000] == [9; 5000] && bytes[5000..] == [0; 120], "{cache:?}");
            }
            assert_eq!(
                file.as_file().metadata().unwrap().len(),
                5000,
                "reading changes nothing"
            );
            io.write(4608, vec![IoBuf::from_bytes(&[1; 512]).unwrap()])
                .await
                .0
                .unwrap();
            assert_eq!(file.as_file().metadata().unwrap().len(), 5120);
            // Cut from outside: zeroes are made up for no more than the last sector.
            file.as_file().set_len(2000).unwrap();
            let (result, _) = io.read(0, vec![IoBuf::heap(5120, 4096).unwrap()]).await;
            assert_eq!(result.unwrap_err().kind(), DiskErrorKind::Io);
        });
    }
}

#[test]
fn who_only_looks_neither_locks_nor_writes() {
    let file = image(SIZE_BYTES);
    let writer = open(file.path(), Access::ReadWrite).unwrap();
    let look = RawOptions {
        locking: Locking::Look,
        ..RawOptions::named("test.raw")
    };
    let looking = RawDisk::open(file.path(), look.clone()).unwrap();
    assert_eq!(looking.geometry().access, Access::ReadOnly);
    drop(writer);
    open(file.path(), Access::ReadWrite).unwrap();
    // The lock of the descriptor it is given stays what it is.
    let held = fs::File::options().read(true).write(true).open(file.path()).unwrap();
    let writer = RawDisk::from_fd(held.try_clone().unwrap().into(), RawOptions::named("held")).unwrap();
    drop(RawDisk::from_fd(held.into(), look).unwrap());
    assert!(matches!(
        open(file.path(), Access::ReadOnly),
        Err(OpenError::InUse { .. })
    ));
    drop(writer);
}

#[test]
fn growth_never_cuts_what_was_extended_from_outside() {
    let file = image(SIZE_BYTES);
    let disk = open(file.path(), Access::ReadWrite).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        file.as_file().set_len(3 * SIZE_BYTES).unwrap();
        io.grow(2 * SIZE_BYTES).await.unwrap();
        assert_eq!(disk.geometry().size_bytes, 2 * SIZE_BYTES);
        assert_eq!(file.as_file().metadata().unwrap().len(), 3 * SIZE_BYTES);
        let error = io.grow(u64::MAX - 511).await.unwrap_err();
        assert_eq!(
            (error.kind(), disk.geometry().size_bytes),
            (DiskErrorKind::NoSpace, 2 * SIZE_BYTES)
        );
    });
}

#[test]
fn holes_are_told_from_data() {
    let file = image(1 << 30);
    file.as_file().write_all_at(&[1; 8192], 1 << 20).unwrap();
    file.as_file().write_all_at(&[1; 1], (1 << 30) - 1).unwrap();
    let disk = open(file.path(), Access::ReadOnly).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        let found = io.extents(0, 1 << 30).await.unwrap();
        let data: u64 = found.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.len).sum();
        assert!((8193..1 << 20).contains(&data), "{found:?}");
        assert_eq!(found.last().unwrap().end(), 1 << 30);
    });
}

#[test]
fn queues_need_an_executor() {
    let disk = disk(SIZE_BYTES, CacheMode::Cached, SectorSize::B512).unwrap();
    let error = disk.open_queue().err().unwrap();
    assert_eq!((error.kind(), error.op()), (DiskErrorKind::Unsupported, DiskOp::Open));
}
