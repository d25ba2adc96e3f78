//! Operations are crash-safe: their writes and flushes are recorded, and every state that a power loss may leave (all that was
//! flushed, any part of what was not, torn between sectors) must be as before or as after, with at most lost clusters.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and images here are small"
)]
#![allow(clippy::print_stderr, reason = "figures for whoever runs it")]

mod support;

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use disk::{Access, Disk, DiskError, DiskFuture, DiskIo, Extent, Geometry, Transferred, ZeroMode};
use disk_qcow2::meta::header::incompatible;
use disk_qcow2::meta::refcount;
use disk_qcow2::ops::snapshot::{self, Moment};
use disk_qcow2::ops::{BackingName, CreateOptions, Head, Limits, Repair, check, create, repair, set_backing};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use support::memory::Memory;

const FILE_BYTES: u64 = 64 << 20;
const NOW: Moment = Moment {
    seconds: 1,
    nanoseconds: 0,
};

#[derive(Clone)]
enum Event {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Grow(u64),
    Flush,
}

/// Passes everything on, and remembers what changes.
#[derive(Clone)]
struct Recorder {
    inner: Memory,
    log: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }
}

impl Disk for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn geometry(&self) -> Geometry {
        Disk::geometry(&self.inner)
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for Recorder {
    fn geometry(&self) -> Geometry {
        Disk::geometry(&self.inner)
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.inner.read(offset, bufs)
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.note(Event::Write(offset, bufs.iter().flat_map(IoBuf::to_vec).collect()));
        self.inner.write(offset, bufs)
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.note(Event::Flush);
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.note(Event::Zero(offset, len));
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.note(Event::Zero(offset, len));
        self.inner.write_zeroes(offset, len, mode)
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.note(Event::Grow(size_bytes));
        self.inner.grow(size_bytes)
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.inner.extents(offset, len)
    }
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

struct Bench {
    executor: uring::Executor,
}

impl Bench {
    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.executor.block_on(future).unwrap()
    }

    /// What a guest reads.
    fn contents(&mut self, image: &Memory) -> Vec<u8> {
        let image: Arc<dyn Disk> = Arc::new(image.clone());
        self.run(async {
            let options = Qcow2Options {
                access: Access::ReadOnly,
                ..Qcow2Options::named("crashed")
            };
            let disk = Qcow2Disk::open(image, options).await.unwrap();
            let io = disk.open_queue().unwrap();
            let buf = IoBuf::heap(disk.geometry().size_bytes as usize, 512).unwrap();
            let (result, bufs) = io.read(0, vec![buf]).await;
            result.unwrap();
            bufs[0].to_vec()
        })
    }

    fn snapshots(&mut self, image: &Memory) -> Vec<String> {
        let io = image.open_queue().unwrap();
        let list = self.run(snapshot::list(&*io)).unwrap();
        list.into_iter().map(|snapshot| snapshot.name).collect()
    }
}

fn copy(bytes: &[u8]) -> Memory {
    Memory::holding(bytes, FILE_BYTES)
}

/// A state that a power loss after `cut` events may leave.
fn crashed(before: &[u8], events: &[Event], cut: usize, random: &mut Random) -> Memory {
    let image = copy(before);
    let io = image.open_queue().unwrap();
    let flushed = events[..cut]
        .iter()
        .rposition(|event| matches!(event, Event::Flush))
        .unwrap_or(0);
    let now = |future: DiskFuture<'_, Result<(), DiskError>>| support::block_on(future).unwrap();
    for (index, event) in events[..cut].iter().enumerate() {
        let durable = index < flushed;
        match event {
            Event::Flush => {}
            Event::Grow(size) => {
                if durable || random.one_in(2) {
                    now(io.grow((*size).max(Disk::geometry(&image).size_bytes)));
                }
            }
            Event::Zero(offset, len) => {
                if durable || random.one_in(2) {
                    now(io.write_zeroes(*offset, *len, ZeroMode::MayUnmap));
                }
            }
            Event::Write(offset, bytes) => {
                let (whole, torn) = (durable || random.one_in(2), random.one_in(2));
                for (sector, piece) in bytes.chunks(512).enumerate() {
                    if durable || if torn { random.one_in(2) } else { whole } {
                        let at = offset + sector as u64 * 512;
                        now(io.grow((at + 512).max(Disk::geometry(&image).size_bytes)));
                        let bufs = vec![IoBuf::from_bytes(piece).unwrap()];
                        support::block_on(io.write(at, bufs)).0.unwrap();
                    }
                }
            }
        }
    }
    image
}

/// The file's bytes.
fn bytes_of(image: &Memory) -> Vec<u8> {
    let io = image.open_queue().unwrap();
    let buf = IoBuf::heap(Disk::geometry(image).size_bytes as usize, 512).unwrap();
    let (result, bufs) = support::block_on(io.read(0, vec![buf]));
    result.unwrap();
    bufs[0].to_vec()
}

fn qemu_is_content(dir: &Path, image: &Memory, what: &str) {
    let path = dir.join("crashed.qcow2");
    std::fs::write(&path, bytes_of(image)).unwrap();
    support::assert_clean(&path, what);
}

/// One operation, its crashes, and what must hold after each.
struct Case<'a> {
    what: String,
    before: &'a [u8],
    version: u32,
    rounds: usize,
    /// What a disk does that lies about flushes.
    forget_flushes: bool,
}

impl Case<'_> {
    /// Runs `act` on the image, and then looks at what crashes within it leave.
    fn run<F: Future<Output = ()>>(&self, bench: &mut Bench, act: impl FnOnce(Rc<dyn DiskIo>) -> F) {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder {
            inner: copy(self.before),
            log: Arc::default(),
        };
        let io = recorder.open_queue().unwrap();
        bench.run(act(io));
        let mut events = recorder.log.lock().unwrap().clone();
        assert!(events.len() > 3, "{}", self.what);
        if self.forget_flushes {
            events.retain(|event| !matches!(event, Event::Flush));
        }
        let old = copy(self.before);
        // Repairs start from an image whose disk can not always be read: the data is that of the repaired one.
        let after_data = bench.contents(&recorder.inner);
        let io = old.open_queue().unwrap();
        bench.run(repair(&*io, Repair::All, Limits::default())).unwrap();
        let data = [bench.contents(&old), after_data];
        let lists = [bench.snapshots(&old), bench.snapshots(&recorder.inner)];
        let mut random = Random(0x1234_5678_9abc_def1);
        let mut states = 0;
        for cut in 0..=events.len() {
            for round in 0..self.rounds {
                let what = format!("{}, cut {cut} of {}, round {round}", self.what, events.len());
                let image = crashed(self.before, &events, cut, &mut random);
                self.judge(bench, &image, &data, &lists, &what);
                if states % 97 == 0 && support::have_qemu() {
                    qemu_is_content(dir.path(), &image, &what);
                }
                states += 1;
            }
        }
        eprintln!("{}: {} events, {states} crashes", self.what, events.len());
    }

    fn judge(&self, bench: &mut Bench, image: &Memory, data: &[Vec<u8>; 2], lists: &[Vec<String>; 2], what: &str) {
        let io = image.open_queue().unwrap();
        let head = bench.run(Head::read(&*io)).unwrap();
        let dirty = head.header.incompatible & incompatible::DIRTY != 0;
        let report = bench.run(check(&*io, Limits::default())).unwrap();
        if self.version >= 3 && !dirty {
            assert_eq!(report.corruptions, 0, "{what}: {report:#?}");
        }
        let report = bench.run(repair(&*io, Repair::All, Limits::default())).unwrap();
        assert!(report.is_clean(), "{what}: {report:#?}");
        let found = bench.contents(image);
        assert!(data.contains(&found), "{what}: the data is neither old nor new");
        let list = bench.snapshots(image);
        assert!(lists.contains(&list), "{what}: {list:?}");
        // Data and table change together.
        if data[0] != data[1] && lists[0] != lists[1] {
            assert_eq!(found == data[1], list == lists[1], "{what}");
        }
    }
}

async fn write(io: &dyn DiskIo, offset: u64, fill: u8, len: usize) {
    let mut buf = IoBuf::heap(len, 512).unwrap();
    buf.fill(0, len, fill).unwrap();
    io.write(offset, vec![buf]).await.0.unwrap();
}

/// An image with data, a snapshot "one", and more data.
fn with_snapshot(bench: &mut Bench, options: &CreateOptions) -> Vec<u8> {
    let image = copy(&[]);
    bench.run(async {
        let io = image.open_queue().unwrap();
        create(&*io, None, options).await.unwrap();
        for (offset, fill) in [(0, 1), (100 << 10, 2)] {
            let disk = Qcow2Disk::open(Arc::new(image.clone()), Qcow2Options::named("x"))
                .await
                .unwrap();
            let queue = disk.open_queue().unwrap();
            write(&*queue, offset, fill, 40 << 10).await;
            drop(queue);
            disk.close().await.unwrap();
            if fill == 1 {
                snapshot::create(&*io, "one", NOW, Limits::default()).await.unwrap();
            }
        }
        let disk = Qcow2Disk::open(Arc::new(image.clone()), Qcow2Options::named("x"))
            .await
            .unwrap();
        let queue = disk.open_queue().unwrap();
        write(&*queue, 10 << 10, 3, 8 << 10).await;
        drop(queue);
        disk.close().await.unwrap();
    });
    bytes_of(&image)
}

fn bench() -> Option<Bench> {
    match uring::Executor::new(64) {
        Ok(executor) => Some(Bench { executor }),
        Err(error) => {
            eprintln!("SKIPPED: no io_uring here: {error}");
            None
        }
    }
}

fn kinds() -> Vec<(&'static str, CreateOptions)> {
    use disk_qcow2::ops::Compat;
    let small = CreateOptions {
        cluster_bytes: 512,
        ..CreateOptions::of_size(256 << 10)
    };
    let old = CreateOptions {
        compat: Compat::V2,
        cluster_bytes: 4096,
        ..CreateOptions::of_size(256 << 10)
    };
    let wide = CreateOptions {
        refcount_bits: 64,
        cluster_bytes: 512,
        ..small.clone()
    };
    let extended = CreateOptions {
        cluster_bytes: 16 << 10,
        extended_l2: true,
        ..small.clone()
    };
    vec![("512", small), ("v2", old), ("64 bits", wide), ("extended", extended)]
}

#[test]
fn snapshots_survive_power_loss() {
    let Some(mut bench) = bench() else { return };
    for (name, options) in kinds() {
        let before = with_snapshot(&mut bench, &options);
        let version = u32::from(before[7]);
        let case = |what: String| Case {
            what,
            before: &before,
            version,
            rounds: 6,
            forget_flushes: false,
        };
        let limits = Limits::default();
        case(format!("{name}: create")).run(&mut bench, |io| async move {
            snapshot::create(&*io, "two", NOW, limits).await.unwrap();
        });
        case(format!("{name}: apply")).run(&mut bench, |io| async move {
            snapshot::apply(&*io, "one", limits).await.unwrap();
        });
        case(format!("{name}: delete")).run(&mut bench, |io| async move {
            snapshot::delete(&*io, "one", limits).await.unwrap();
        });
    }
}

#[test]
fn repairs_survive_power_loss() {
    let Some(mut bench) = bench() else { return };
    for (name, options) in kinds() {
        let mut before = with_snapshot(&mut bench, &options);
        // The refcount table is lost.
        let table = u64::from_be_bytes(before[48..56].try_into().unwrap()) as usize;
        before[table..table + 512].fill(0);
        if before[7] == 3 {
            // As it is found: known to be damaged.
            before[79] |= 2;
        }
        repair_case(&mut bench, format!("{name}: rebuild"), &before);
    }
}

#[test]
fn repairs_in_place_survive_power_loss() {
    let Some(mut bench) = bench() else { return };
    for (name, options) in kinds() {
        let mut before = with_snapshot(&mut bench, &options);
        let word = |at: usize| u64::from_be_bytes(before[at..at + 8].try_into().unwrap()) as usize;
        let (block, order) = (word(word(48)), options.refcount_bits.trailing_zeros());
        let cluster = options.cluster_bytes as usize;
        let counted = cluster * 8 / options.refcount_bits as usize;
        let clusters = (before.len() / cluster).min(counted);
        // Some counts are too low, as after a crash with lazy refcounts; some too high.
        for (index, count) in [
            (clusters - 1, 0),
            (clusters - 2, 0),
            (clusters - 3, 3),
            (clusters - 4, 0),
        ] {
            refcount::set(&mut before[block..block + cluster], order, index, count);
        }
        if before[7] == 3 {
            before[79] |= 1;
        }
        repair_case(&mut bench, format!("{name}: in place"), &before);
    }
}

fn repair_case(bench: &mut Bench, what: String, before: &[u8]) {
    let case = Case {
        what,
        before,
        version: 2,
        rounds: 6,
        forget_flushes: false,
    };
    case.run(bench, |io| async move {
        let report = repair(&*io, Repair::All, Limits::default()).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    });
}

#[test]
fn without_flushes_it_would_show() {
    let Some(mut bench) = bench() else { return };
    let (_, options) = kinds().swap_remove(0);
    let before = with_snapshot(&mut bench, &options);
    let case = Case {
        what: "no flushes".to_owned(),
        before: &before,
        version: 3,
        rounds: 20,
        forget_flushes: true,
    };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        case.run(&mut bench, |io| async move {
            snapshot::create(&*io, "two", NOW, Limits::default()).await.unwrap();
        });
    }));
    assert!(caught.is_err(), "these tests notice a missing flush");
}

#[test]
fn an_image_is_there_when_it_is_whole() {
    let Some(mut bench) = bench() else { return };
    let base = vec![7; 8192];
    for (name, options) in kinds() {
        let recorder = Recorder {
            inner: copy(&base),
            log: Arc::default(),
        };
        let io = recorder.open_queue().unwrap();
        bench.run(create(&*io, None, &options)).unwrap();
        let events = recorder.log.lock().unwrap().clone();
        let mut random = Random(77);
        let mut whole = 0;
        for cut in 0..=events.len() {
            for _ in 0..6 {
                let image = crashed(&base, &events, cut, &mut random);
                let io = image.open_queue().unwrap();
                if bench.run(Head::read(&*io)).is_ok() {
                    whole += 1;
                    let report = bench.run(check(&*io, Limits::default())).unwrap();
                    assert!(report.is_clean(), "{name}, cut {cut}: {report:#?}");
                }
            }
        }
        assert!(whole > 0);
    }
}

#[test]
fn a_backing_name_is_old_or_new() {
    let Some(mut bench) = bench() else { return };
    let name = |name: &str| BackingName {
        name: name.to_owned(),
        format: "qcow2".to_owned(),
    };
    for cluster_bytes in [512, 4096, 65536] {
        let image = copy(&[]);
        let io = image.open_queue().unwrap();
        let options = CreateOptions {
            cluster_bytes,
            backing: Some(name("old.qcow2")),
            ..CreateOptions::of_size(1 << 20)
        };
        bench.run(create(&*io, None, &options)).unwrap();
        let before = bytes_of(&image);
        let recorder = Recorder {
            inner: copy(&before),
            log: Arc::default(),
        };
        let io = recorder.open_queue().unwrap();
        bench
            .run(set_backing(&*io, Some(&name("a-new-and-longer-name.qcow2"))))
            .unwrap();
        let events = recorder.log.lock().unwrap().clone();
        let mut random = Random(99);
        for cut in 0..=events.len() {
            for _ in 0..50 {
                let image = crashed(&before, &events, cut, &mut random);
                let io = image.open_queue().unwrap();
                let head = bench.run(Head::read(&*io)).unwrap();
                let found = head.backing_file.unwrap();
                assert!(
                    ["old.qcow2", "a-new-and-longer-name.qcow2"].contains(&found.as_str()),
                    "{found}"
                );
                assert_eq!(head.extensions.backing_format(), Ok(Some("qcow2")));
            }
        }
    }
}
