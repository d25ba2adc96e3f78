//! Jobs under writers that do not stop, judged by what the writers know they wrote.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use disk::conformance::{self, SIZE_BYTES};
use disk::{Access, DiskErrorKind, Fault, FaultPlan, Faulty, Geometry, InMemory};
use spec::DiskFormat;

use super::*;
use crate::tests::Bench;
use crate::*;
use disk::{Disk, DiskFuture, DiskIo, DiskOp, ZeroMode};
use guestmem::IoBuf;
use std::sync::Arc;

const DISK_BYTES: u64 = 6 << 20;
const WRITERS: u64 = 2;
const PART: u64 = DISK_BYTES / WRITERS;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    engine::block_on(work).unwrap()
}

/// Guests: each has a queue and a part of the disk of its own, and knows what it wrote there.
struct Guests {
    stop: AtomicBool,
    steps: AtomicU64,
}

impl Guests {
    /// Runs `job` while they are at work; what the disk holds in the end.
    fn work<T>(switch: &Switch, start: &[u8], job: impl FnOnce(&Self) -> T) -> (T, Vec<u8>) {
        let guests = Self {
            stop: AtomicBool::new(false),
            steps: AtomicU64::new(0),
        };
        thread::scope(|scope| {
            let guests = &guests;
            let running: Vec<_> = (0..WRITERS)
                .map(|number| {
                    let offset = usize::try_from(number * PART).unwrap();
                    let model = start[offset..offset + usize::try_from(PART).unwrap()].to_vec();
                    scope.spawn(move || block_on(guests.one(switch, number, model)))
                })
                .collect();
            guests.wait_for(50);
            let done = job(guests);
            guests.wait_for(50);
            guests.stop.store(true, Ordering::Relaxed);
            let model = running.into_iter().flat_map(|guest| guest.join().unwrap()).collect();
            (done, model)
        })
    }

    fn wait_for(&self, more: u64) {
        let goal = self.steps.load(Ordering::Relaxed) + more;
        while self.steps.load(Ordering::Relaxed) < goal {
            thread::yield_now();
        }
    }

    async fn one(&self, switch: &Switch, number: u64, mut model: Vec<u8>) -> Vec<u8> {
        let io = switch.open_queue().unwrap();
        let base = number * PART;
        let mut state = number + 77;
        while !self.stop.load(Ordering::Relaxed) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let first = (state >> 33) % (PART / 512);
            let count = ((state >> 20) % 96 + 1).min(PART / 512 - first);
            let (offset, len) = (first * 512, count * 512);
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            match (state >> 12) % 8 {
                0..=3 => {
                    let bytes = conformance::pattern(range.len(), state);
                    io.write(base + offset, vec![IoBuf::from_bytes(&bytes).unwrap()])
                        .await
                        .0
                        .unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                4 => {
                    io.write_zeroes(base + offset, len, ZeroMode::MayUnmap).await.unwrap();
                    model[range].fill(0);
                }
                5 => {
                    io.discard(base + offset, len).await.unwrap();
                    let now = read(&*io, base + offset, len).await;
                    model[range].copy_from_slice(&now);
                }
                6 => io.flush().await.unwrap(),
                _ => assert!(
                    read(&*io, base + offset, len).await == model[range],
                    "guest {number} at {offset}"
                ),
            }
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        model
    }
}

async fn read(io: &dyn DiskIo, offset: u64, len: u64) -> Vec<u8> {
    let (result, bufs) = io
        .read(offset, vec![IoBuf::heap(usize::try_from(len).unwrap(), 4096).unwrap()])
        .await;
    result.unwrap();
    bufs[0].to_vec()
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    block_on(async { read(&*disk.open_queue().unwrap(), 0, disk.geometry().size_bytes).await })
}

fn in_memory(bytes: Vec<u8>) -> Arc<dyn Disk> {
    Arc::new(InMemory::holding(bytes, Access::ReadWrite))
}

#[test]
fn switches_conform() {
    let make = || -> Arc<dyn Disk> { Arc::new(Switch::new(Arc::new(InMemory::new(Geometry::of_size(SIZE_BYTES))))) };
    conformance::all(make, |case: DiskFuture<'_, ()>| block_on(case));
    // And while everything is mirrored.
    let mirrors = std::cell::RefCell::new(Vec::new());
    let make = || -> Arc<dyn Disk> {
        let switch = Switch::new(Arc::new(InMemory::new(Geometry::of_size(SIZE_BYTES))));
        let target = InMemory::new(Geometry::of_size(SIZE_BYTES));
        let mirror = mirror(&switch, Arc::new(target.clone()), true, &()).unwrap();
        mirrors.borrow_mut().push((mirror, switch.clone(), target));
        Arc::new(switch)
    };
    conformance::all(make, |case: DiskFuture<'_, ()>| block_on(case));
    for (mirror, switch, target) in mirrors.into_inner() {
        let old = mirror.pivot(|| Ok(())).unwrap();
        assert!(contents(&*old) == target.contents() && contents(&switch) == target.contents());
    }
}

#[test]
fn a_mirror_holds_what_the_guests_wrote_and_takes_over() {
    let start = conformance::pattern(usize::try_from(DISK_BYTES).unwrap(), 1);
    for target_is_zero in [true, false] {
        let switch = Switch::new(in_memory(start.clone()));
        let target = InMemory::holding(
            vec![if target_is_zero { 0 } else { 0xee }; start.len()],
            Access::ReadWrite,
        );
        let progress = Progress::new();
        let (old, model) = Guests::work(&switch, &start, |guests| {
            let mirror = mirror(&switch, Arc::new(target.clone()), target_is_zero, &progress).unwrap();
            guests.wait_for(50);
            assert!(matches!(
                super::mirror(&switch, in_memory(Vec::new()), true, &()),
                Err(MirrorError::Busy(_))
            ));
            mirror.pivot(|| Ok(())).unwrap()
        });
        assert_eq!(
            (progress.done_bytes(), progress.total_bytes()),
            (DISK_BYTES, DISK_BYTES)
        );
        assert!(contents(&switch) == model && target.contents() == model);
        assert!(contents(&*old) != model, "the old disk is left alone after the pivot");
    }
}

#[test]
fn a_mirror_that_is_stopped_or_fails_does_not_hurt_the_disk() {
    let start = conformance::pattern(usize::try_from(DISK_BYTES).unwrap(), 2);
    let switch = Switch::new(in_memory(start.clone()));
    let ((), model) = Guests::work(&switch, &start, |guests| {
        let stopped = Progress::new();
        stopped.stop();
        let error = mirror(&switch, in_memory(vec![0; start.len()]), true, &stopped)
            .err()
            .unwrap();
        assert!(matches!(error, MirrorError::Stopped), "{error}");
        let whole = in_memory(vec![0; start.len()]);
        mirror(&switch, whole, true, &()).unwrap().cancel().unwrap();
        let plan = FaultPlan::new();
        let target = Arc::new(Faulty::new(in_memory(vec![0; start.len()]), plan.clone()));
        let mirrored = mirror(&switch, target, true, &()).unwrap();
        plan.inject(Fault::always(DiskOp::Write, DiskErrorKind::NoSpace));
        while plan.struck() == 0 {
            guests.wait_for(1);
        }
        guests.wait_for(1);
        let error = mirrored.pivot(|| Ok(())).err().unwrap();
        assert!(matches!(error, MirrorError::Diverged(_)), "{error}");
        let error = mirror(&switch, in_memory(vec![0; 512]), true, &()).err().unwrap();
        assert!(matches!(error, MirrorError::Fits(_)), "{error}");
    });
    assert!(contents(&switch) == model);
}

#[test]
fn snapshots_keep_the_moment_and_streams_make_independent() {
    let bench = Bench::new();
    let start = bench.raw("base.raw", DISK_BYTES);
    let access = OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    };
    let base = open(&bench.chain("base.raw", 1), &access).unwrap();
    let switch = Switch::new(base.disk());
    let backing = |name: &str, format: &str| BackingName {
        name: name.to_owned(),
        format: format.to_owned(),
    };
    let ((top, moments), model) = Guests::work(&switch, &start, |guests| {
        let one = snapshot(
            &switch,
            &bench.file("one.qcow2"),
            "one.qcow2",
            &backing("base.raw", "raw"),
            &access,
        )
        .unwrap();
        // What is below does not change any more.
        let moment = fs::read(bench.path("base.raw")).unwrap();
        guests.wait_for(50);
        let two = snapshot(
            &switch,
            &bench.file("two.qcow2"),
            "two.qcow2",
            &backing("one.qcow2", "qcow2"),
            &access,
        )
        .unwrap();
        let later = contents(&*one.disk());
        guests.wait_for(50);
        let stopped = Progress::new();
        stopped.stop();
        let error = stream(&switch, &two, &stopped).err().unwrap();
        assert!(matches!(error, StreamError::Stopped), "{error}");
        let error = stream(&switch, &one, &()).err().unwrap();
        assert!(matches!(error, StreamError::NotOnTop), "{error}");
        let progress = Progress::new();
        let top = stream(&switch, &two, &progress).unwrap();
        assert_eq!(
            (progress.done_bytes(), progress.total_bytes()),
            (DISK_BYTES, DISK_BYTES)
        );
        guests.wait_for(50);
        assert!(fs::read(bench.path("base.raw")).unwrap() == moment && contents(&*one.disk()) == later);
        (top, (moment, later))
    });
    assert!(contents(&switch) == model && moments.0 != moments.1);
    top.close_now().unwrap();
    drop((top, switch, base));
    assert!(bench.chain("two.qcow2", 0).below().is_empty());
    assert_eq!(bench.chain("one.qcow2", 0).below().len(), 1);
    assert!(bench.contents("two.qcow2") == model);
    assert!(bench.contents("one.qcow2") == moments.1);
    bench.is_sound("two.qcow2");
    bench.is_sound("one.qcow2");
    assert_eq!(bench.chain("two.qcow2", 0).top().format, DiskFormat::Qcow2);
}
