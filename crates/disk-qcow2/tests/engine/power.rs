//! Power cuts: what reached the disk since the last sync did so in any order, or not at all. No image may be damaged by
//! that (leaks apart), and nothing may be lost that was flushed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use disk::conformance::pattern;
use disk::{Access, Disk, DiskError, DiskFuture, DiskIo, Geometry, InMemory, Transferred, ZeroMode};
use disk_qcow2::ops::{Limits, check};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use uring::{Executor, Ring};

use crate::jitter::Jitter;
use crate::{Lab, block_on, open, read_all, write};

const SECTOR: usize = 512;
const TASKS: u64 = 4;
/// Sectors of the disk that are worked on.
const SECTORS: u64 = (3 << 20) / SECTOR as u64;

/// What happened to a file, with the time of each event.
enum Event {
    Write(u64, Vec<u8>),
    Grow(u64),
    Sync,
}

/// A disk that records.
#[derive(Clone)]
struct Journal {
    disk: InMemory,
    clock: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<(u64, Event)>>>,
}

impl Journal {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        events.push((self.now(), event));
    }

    /// The file after a power cut at `time`: all that was synced, and of the rest what chance says, sector by sector.
    fn cut(&self, start: &[u8], time: u64, seed: u64) -> Vec<u8> {
        let events = self.events.lock().unwrap();
        let before = |at: u64| at < time;
        let synced = events
            .iter()
            .rposition(|(at, event)| before(*at) && matches!(event, Event::Sync));
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        // Some cuts lose nearly nothing, some nearly all.
        let odds = seed % 8 + 1;
        let mut bytes = start.to_vec();
        for (index, (_, event)) in events.iter().enumerate().take_while(|(_, (at, _))| before(*at)) {
            match event {
                Event::Grow(size) => bytes.resize(*size as usize, 0),
                Event::Sync => {}
                Event::Write(at, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        if synced.is_some_and(|synced| index < synced) || state % 9 < odds {
                            let place = *at as usize + number * SECTOR;
                            bytes[place..place + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        bytes
    }
}

impl Disk for Journal {
    fn name(&self) -> &str {
        "journal"
    }

    fn geometry(&self) -> Geometry {
        Disk::geometry(&self.disk)
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for Journal {
    fn geometry(&self) -> Geometry {
        Disk::geometry(&self.disk)
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.disk.read(offset, bufs)
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
        Box::pin(async move {
            let written = self.disk.write(offset, bufs).await;
            self.note(Event::Write(offset, bytes));
            written
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.note(Event::Sync);
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.disk.discard(offset, len).await?;
            self.note(Event::Write(offset, vec![0; len as usize]));
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.discard(offset, len)
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.disk.grow(size_bytes).await?;
            self.note(Event::Grow(size_bytes));
            Ok(())
        })
    }
}

/// What a sector was given, from when on, and when that was done.
struct Version {
    began: u64,
    ended: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct History {
    sectors: HashMap<u64, Vec<Version>>,
    /// Flushes: when they began and ended.
    flushes: Vec<(u64, u64)>,
}

impl History {
    /// Whether a sector may read so after a cut at `time`.
    fn allows(&self, sector: u64, start: &[u8], now: &[u8], time: u64) -> bool {
        let flushed = self
            .flushes
            .iter()
            .filter(|(_, ended)| *ended < time)
            .map(|(began, _)| *began)
            .max();
        let none = Vec::new();
        let versions = self.sectors.get(&sector).unwrap_or(&none);
        let sure = versions
            .iter()
            .rposition(|version| flushed.is_some_and(|flushed| version.ended < flushed));
        let since = versions
            .iter()
            .skip(sure.unwrap_or(0))
            .filter(|version| version.began < time);
        (sure.is_none() && now == start) || since.into_iter().any(|version| version.bytes == now)
    }
}

/// Works on its own eighths of the disk.
async fn work(io: Rc<dyn DiskIo>, journal: Journal, history: Rc<RefCell<History>>, id: u64, steps: u64) {
    let sectors = (io.geometry().size_bytes / SECTOR as u64).min(SECTORS);
    let mut state = (id + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for step in 0..steps {
        if step == steps / 2 && id == 0 {
            // The L1 table moves where clusters are small.
            io.grow(24 << 20).await.unwrap();
        }
        // Stripes of 24 sectors, so that clusters are shared.
        let stripe = (next() % (sectors / 24 / TASKS)) * TASKS + id;
        let most = if next() % 4 == 0 { 24 } else { 6 };
        let (first, count) = (stripe * 24, next() % most + 1);
        let (at, len) = (first * SECTOR as u64, count * SECTOR as u64);
        let began = journal.now();
        let bytes = match next() % 8 {
            0..=4 => {
                let bytes = pattern(len as usize, next());
                write(&*io, at, &bytes).await;
                bytes
            }
            5 => {
                io.write_zeroes(at, len, ZeroMode::MayUnmap).await.unwrap();
                vec![0; len as usize]
            }
            6 => {
                // All of a stripe and what is unowned behind it: whole clusters of the smaller sizes.
                io.write_zeroes(first * 512, 24 * 512, ZeroMode::MayUnmap)
                    .await
                    .unwrap();
                vec![0; 24 * 512]
            }
            _ => {
                io.flush().await.unwrap();
                let ended = journal.now();
                history.borrow_mut().flushes.push((began, ended));
                continue;
            }
        };
        let ended = journal.now();
        let mut history = history.borrow_mut();
        for (number, sector) in bytes.chunks(SECTOR).enumerate() {
            let versions = history.sectors.entry(first + number as u64).or_default();
            versions.push(Version {
                began,
                ended,
                bytes: sector.to_vec(),
            });
        }
    }
}

fn survives(lab: &Lab, name: &str, backing: Option<&InMemory>, steps: u64) {
    let file = lab.load(name);
    let start = file.contents();
    let journal = Journal {
        disk: file,
        clock: Arc::default(),
        events: Arc::default(),
    };
    let shown = |disk: &InMemory| {
        let backing = backing.cloned().map(|disk| -> Arc<dyn Disk> { Arc::new(disk) });
        let disk = open(disk, backing);
        block_on(async { read_all(&*disk.open_queue().unwrap()).await })
    };
    let before = shown(&InMemory::holding(start.clone(), Access::ReadWrite));
    let options = Qcow2Options {
        cache_bytes: 32 << 10,
        backing: backing.cloned().map(|disk| -> Arc<dyn Disk> { Arc::new(disk) }),
        ..Qcow2Options::named(name)
    };
    let mut executor = Executor::new(64).unwrap();
    let history = executor.block_on(async {
        let below = Arc::new(Jitter::new(Arc::new(journal.clone()), 4));
        let disk = Qcow2Disk::open(below, options).await.unwrap();
        let history = Rc::new(RefCell::new(History::default()));
        let ring = Ring::current().unwrap();
        let tasks: Vec<_> = (0..TASKS)
            .map(|id| {
                let io = disk.open_queue().unwrap();
                ring.spawn(work(io, journal.clone(), Rc::clone(&history), id, steps))
            })
            .collect();
        for task in tasks {
            task.await;
        }
        disk.close().await.unwrap();
        Rc::into_inner(history).unwrap().into_inner()
    });
    let history = history.unwrap();
    drop(executor);
    let end = journal.now();
    for round in 0..60 {
        let time = end * round / 59;
        let image = InMemory::holding(journal.cut(&start, time, round), Access::ReadWrite);
        let lazy = name.contains("lazy");
        if !lazy {
            let report = block_on(async { check(&*image.open_queue().unwrap(), Limits::default()).await.unwrap() });
            assert_eq!(report.corruptions, 0, "{name}, cut {round}: {report:?}");
            if round % 10 == 3 {
                lab.check(&image, true);
            }
        }
        let after = shown(&image);
        for (sector, (old, new)) in before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate() {
            let fine = history.allows(sector as u64, old, new, time);
            assert!(
                fine,
                "{name}, cut {round}: sector {sector} is what it never was, or has lost what was flushed"
            );
        }
        lab.check(&image, !lazy);
    }
}

#[test]
fn power_cuts_do_no_harm() {
    let Some(lab) = Lab::new() else { return };
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=4k,lazy_refcounts=on",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=1k,refcount_bits=64",
        // The refcount table moves on the way.
        "cluster_size=512,refcount_bits=64",
    ] {
        let name = if options.contains("lazy") {
            "lazy.qcow2"
        } else {
            "a.qcow2"
        };
        lab.run(&format!("qemu-img create -f qcow2 -o {options} {name} 3M"));
        survives(&lab, name, None, 80);
    }
}

#[test]
fn power_cuts_do_no_harm_to_overlays_with_snapshots() {
    let Some(lab) = Lab::new() else { return };
    let base = InMemory::holding(pattern(2 << 20, 3), Access::ReadOnly);
    fs::write(lab.path("base.raw"), base.contents()).unwrap();
    for options in ["cluster_size=64k", "cluster_size=1k", "cluster_size=16k,extended_l2=on"] {
        lab.run(&format!(
            "qemu-img create -f qcow2 -o {options} -b base.raw -F raw a.qcow2 3M"
        ));
        lab.io(
            "a.qcow2",
            &["write -P 1 0 1M", "write -z 1M 200k", "write -P 5 1500k 700k"],
        );
        lab.run("qemu-img snapshot -c one a.qcow2");
        lab.io("a.qcow2", &["write -P 2 500k 300k"]);
        survives(&lab, "a.qcow2", Some(&base), 80);
    }
}

#[test]
fn power_cuts_do_no_harm_to_compressed_images() {
    let Some(lab) = Lab::new() else { return };
    fs::write(lab.path("source.raw"), [pattern(1 << 20, 1), vec![7; 2 << 20]].concat()).unwrap();
    for options in ["cluster_size=64k", "cluster_size=4k"] {
        let made = Command::new("qemu-img")
            .args(["convert", "-c", "-O", "qcow2", "-o", options, "source.raw", "c.qcow2"])
            .current_dir(lab.path("."))
            .status();
        assert!(made.unwrap().success());
        survives(&lab, "c.qcow2", None, 80);
    }
}
