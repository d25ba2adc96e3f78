//! Damaged and hostile images: whatever an image's file holds, operations and engine end, soon, without a panic and without
//! taking more memory than they say.
//!
//! `KARAT_HOSTILE_RUNS` sets the number of mutated images (3000 unless set; the nightly run takes 100,000 or more),
//! `KARAT_HOSTILE_SEED` the first seed. Every failure names the seed that repeats it.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk::{Access, Disk, DiskIo, ZeroMode};
use disk_qcow2::ops::snapshot::{self, Moment};
use disk_qcow2::ops::{CreateOptions, Limits, Repair, check, create, info, repair, set_backing};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};
use support::memory::Memory;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Memory any operation may take beyond what it was allowed as cache, bytes.
const MEMORY_BYTES: usize = 64 << 20;
/// Processor time any operation may take.
const TIME: Duration = Duration::from_secs(1);
/// What the check may use for counting references, and the engine as its cache, bytes.
const ALLOWED_BYTES: u64 = 8 << 20;
/// Files do not grow beyond this, bytes.
const FILE_BYTES: u64 = 64 << 20;

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// The committed images.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/image");
    let mut images: Vec<(String, Vec<u8>)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    images.sort();
    assert!(images.len() >= 10);
    images
}

fn word(image: &[u8], at: u64) -> u64 {
    let bytes = image.get(at as usize..).and_then(|rest| rest.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Offsets of structures in the image before it is damaged: header, tables, first entries.
fn places(image: &[u8]) -> Vec<u64> {
    let offset = |at| word(image, at) & 0x00ff_ffff_ffff_fe00;
    let (l1, reftable) = (offset(40), offset(48));
    let mut places = vec![
        0,
        l1,
        reftable,
        offset(reftable),
        offset(l1),
        offset(offset(l1)),
        offset(64),
    ];
    if word(image, 0) & 0xff > 2 {
        places.push(word(image, 100) >> 32);
    }
    let extensions = image.windows(4).take(4096).position(|w| w == [0x23, 0x85, 0x28, 0x75]);
    if let Some(at) = extensions {
        places.extend([at as u64, word(image, at as u64 + 24)]);
    }
    places
}

fn mutate(image: &mut Vec<u8>, random: &mut Random) {
    let places = places(image);
    let len = image.len() as u64;
    // Half of the images keep their header, so that what hangs on it is reached.
    let header = random.below(2) == 0;
    for _ in 0..1 + random.below(6) {
        let near = random.pick(&places);
        let at = match random.below(8) {
            0 => random.below(len),
            1..=3 if header => random.below(112),
            _ => near + random.below(96),
        };
        let value = match random.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << random.below(64),
            3 => random.next(),
            4 => random.pick(&places),
            5 => random.pick(&places) | 1 << 63,
            6 => random.pick(&places) | 1 << 62 | random.below(16) << 58,
            7 => len,
            8 => word(image, at).wrapping_add(random.below(3)).wrapping_sub(1),
            _ => word(image, at) ^ 1 << random.below(64),
        };
        let width = random.pick(&[1usize, 2, 4, 8, 8, 8]);
        // Fields are aligned, mostly.
        let at = if random.below(4) > 0 {
            at - at % width as u64
        } else {
            at
        } as usize;
        if let Some(field) = image.get_mut(at..at + width) {
            field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
    match random.below(20) {
        0 => image.truncate(random.below(len) as usize + 512),
        1 => {
            // A table of the same entry all over.
            let at = (random.pick(&places) as usize).min(image.len() - 8);
            let entry: [u8; 8] = image[at..at + 8].try_into().unwrap();
            let end = (at + 4096).min(image.len());
            for field in image[at..end].chunks_exact_mut(8) {
                field.copy_from_slice(&entry);
            }
        }
        _ => {}
    }
}

/// Processor time of this thread.
fn processor() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The worst that was seen.
#[derive(Default)]
struct Worst {
    time: Duration,
    bytes: usize,
    opened: u64,
    checked: u64,
}

impl Worst {
    /// Runs one operation and looks what it took.
    fn measure<T>(&mut self, what: &str, act: impl FnOnce() -> T) -> T {
        let base = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let start = processor();
        let value = act();
        let time = processor() - start;
        let bytes = ALLOCATOR.peak_usage().saturating_sub(base);
        assert!(time < TIME, "{what} took {time:?}");
        let most = MEMORY_BYTES + ALLOWED_BYTES as usize;
        assert!(bytes < most, "{what} took {bytes} bytes of memory");
        self.time = self.time.max(time);
        self.bytes = self.bytes.max(bytes);
        value
    }
}

const LIMITS: Limits = Limits {
    memory_bytes: ALLOWED_BYTES,
};

fn operations(image: &Memory, executor: &mut uring::Executor, worst: &mut Worst) {
    let io = image.open_queue().unwrap();
    let report = worst.measure("check", || executor.block_on(check(&*io, LIMITS)).unwrap());
    worst.checked += u64::from(report.is_ok());
    let _ = worst.measure("info", || executor.block_on(info(&*io)).unwrap());
}

/// Changes made to an image, which may well be refused.
fn changes(bytes: &Memory, executor: &mut uring::Executor, worst: &mut Worst, choice: u64) {
    let io: Rc<dyn DiskIo> = bytes.open_queue().unwrap();
    let now = Moment {
        seconds: 1,
        nanoseconds: 0,
    };
    match choice {
        0 => {
            let _ = worst.measure("repair", || {
                executor.block_on(repair(&*io, Repair::All, LIMITS)).unwrap()
            });
        }
        1 => {
            let _ = worst.measure("snapshot", || {
                executor.block_on(snapshot::create(&*io, "new", now, LIMITS)).unwrap()
            });
        }
        2 => {
            let _ = worst.measure("apply", || {
                executor.block_on(snapshot::apply(&*io, "first", LIMITS)).unwrap()
            });
        }
        3 => {
            let _ = worst.measure("delete", || {
                executor.block_on(snapshot::delete(&*io, "first", LIMITS)).unwrap()
            });
        }
        _ => {
            let _ = worst.measure("amend", || executor.block_on(set_backing(&*io, None)).unwrap());
        }
    }
}

async fn read(io: &dyn DiskIo, offset: u64, len: usize) {
    let buf = IoBuf::heap(len, 512).unwrap();
    let _ = io.read(offset, vec![buf]).await;
}

/// Opens the image and reads here and there; writes too, if it may.
async fn use_disk(image: Memory, access: Access, seed: u64) -> bool {
    let options = Qcow2Options {
        access,
        cache_bytes: ALLOWED_BYTES,
        ..Qcow2Options::named("hostile")
    };
    let Ok(disk) = Qcow2Disk::open(Arc::new(image), options).await else {
        return false;
    };
    let Ok(io) = disk.open_queue() else { return false };
    let size = disk.geometry().size_bytes;
    let mut random = Random(seed | 1);
    read(&*io, 0, 4096.min(size as usize)).await;
    for _ in 0..6 {
        let near = random.pick(&[0, size / 2, size.saturating_sub(1 << 17), random.0 % size.max(1)]);
        let offset = (near + random.below(1 << 17)).min(size) / 512 * 512;
        let len = (random.below(1 << 16).min(size - offset)) / 512 * 512;
        read(&*io, offset, len as usize).await;
        let _ = io.extents(offset, size - offset).await;
        if access == Access::ReadWrite {
            match random.below(5) {
                0 => drop(io.discard(offset, len).await),
                1 => drop(io.write_zeroes(offset, len, ZeroMode::MayUnmap).await),
                2 => drop(io.flush().await),
                _ => {
                    let buf = IoBuf::heap(len as usize, 512).unwrap();
                    drop(io.write(offset, vec![buf]).await);
                }
            }
        }
    }
    drop(io);
    let _ = disk.close().await;
    true
}

/// Prints the seed and dies if a run hangs, which no timeout within the run could tell.
fn watch(current: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = current.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > Duration::from_secs(30) {
                eprintln!("seed {now} hangs");
                std::process::abort();
            }
        }
    });
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn mutated_images_do_no_harm() {
    let mut executor = match uring::Executor::new(64) {
        Ok(executor) => executor,
        Err(error) => {
            eprintln!("SKIPPED: no io_uring here: {error}");
            return;
        }
    };
    let corpus = corpus();
    let (runs, first) = (number("KARAT_HOSTILE_RUNS", 3000), number("KARAT_HOSTILE_SEED", 1));
    let current = Arc::new(AtomicU64::new(first));
    watch(Arc::clone(&current));
    let mut worst = Worst::default();
    for seed in first..first + runs {
        current.store(seed, Ordering::Relaxed);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (name, image) = &corpus[random.below(corpus.len() as u64) as usize];
        let mut image = image.clone();
        mutate(&mut image, &mut random);
        let stretch = match random.below(10) {
            0 => 1 << (20 + random.below(42)),
            _ => 0,
        };
        let fresh = || {
            let memory = Memory::holding(&image, FILE_BYTES.max(stretch));
            memory.stretch(stretch);
            memory
        };
        let choice = random.below(8);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            operations(&fresh(), &mut executor, &mut worst);
            changes(&fresh(), &mut executor, &mut worst, choice);
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let memory = fresh();
                let opened = worst.measure("engine", || executor.block_on(use_disk(memory, access, seed)).unwrap());
                worst.opened += u64::from(opened);
            }
        }));
        assert!(
            caught.is_ok(),
            "seed {seed} ({name}, choice {choice}, stretched to {stretch})"
        );
    }
    eprintln!(
        "{runs} images from seed {first}: {} checks ended, {} openings of {} succeeded; worst {:?} of processor time, {} \
         KiB of memory",
        worst.checked,
        worst.opened,
        2 * runs,
        worst.time,
        worst.bytes >> 10
    );
    // Mutations that leave nothing to test would be no test.
    assert!(worst.checked > runs / 4 && worst.opened > runs / 4);
}

/// As many snapshots as there can be, all with one long L1 table: the file is not gone through for each of them.
#[test]
fn tables_that_overlap_take_no_time() {
    let mut executor = match uring::Executor::new(64) {
        Ok(executor) => executor,
        Err(error) => {
            eprintln!("SKIPPED: no io_uring here: {error}");
            return;
        }
    };
    const SNAPSHOTS: u32 = 65_536;
    const SNAPSHOTS_AT: u64 = 8 << 20;
    const L1_AT: u64 = 16 << 20;
    // Of what the table can have, 32 MiB.
    const L1_ENTRIES: u32 = 4 << 20;
    let image = Memory::holding(&[], 1 << 30);
    let io = image.open_queue().unwrap();
    let options = CreateOptions {
        cluster_bytes: 512,
        ..CreateOptions::of_size(1 << 20)
    };
    executor.block_on(create(&*io, None, &options)).unwrap().unwrap();
    image.stretch(64 << 20);
    let mut table = Vec::new();
    for _ in 0..SNAPSHOTS {
        let mut entry = [0; 56];
        entry[..8].copy_from_slice(&L1_AT.to_be_bytes());
        entry[8..12].copy_from_slice(&L1_ENTRIES.to_be_bytes());
        entry[36..40].copy_from_slice(&16u32.to_be_bytes());
        table.extend(entry);
    }
    let mut pointer = SNAPSHOTS.to_be_bytes().to_vec();
    pointer.extend(SNAPSHOTS_AT.to_be_bytes());
    executor
        .block_on(async {
            let mut header = io.read(0, vec![IoBuf::heap(512, 1).unwrap()]).await.1[0].to_vec();
            header[60..72].copy_from_slice(&pointer);
            io.write(0, vec![IoBuf::from_bytes(&header).unwrap()]).await.0.unwrap();
            io.write(SNAPSHOTS_AT, vec![IoBuf::from_bytes(&table).unwrap()])
                .await
                .0
                .unwrap();
        })
        .unwrap();
    let start = processor();
    let report = executor.block_on(check(&*io, Limits::default())).unwrap().unwrap();
    let took = processor() - start;
    assert!(report.corruptions >= u64::from(SNAPSHOTS) - 1, "{report:#?}");
    // The bound is the one of other hostile images, of which most are far smaller.
    assert!(took < 5 * TIME, "{took:?}");
}
