//! A proof is worth what it finds: disks that lie are found out, a disk that does not is left in peace.
#![expect(clippy::unwrap_used, reason = "a test that can not be set up has failed")]

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::{Disk, DiskError, DiskFuture, DiskIo, Geometry, InMemory, Transferred, ZeroMode, total_len};
use disk_matrix::drive::{Plan, drive};
use disk_matrix::engine::Abilities;
use disk_matrix::shadow::Shadow;
use disk_matrix::transfer::alone;
use disk_matrix::verify;
use disk_raw::{RawDisk, RawOptions};
use guestmem::IoBuf;

const SIZE: usize = 4 << 20;

fn plan(requests: u32) -> Plan {
    Plan {
        seed: 42,
        requests,
        queues: 2,
        depth: 4,
        longest: 256 << 10,
        align: 65_536,
        abilities: Abilities::ALL,
    }
}

/// Drives a disk and compares all of it afterwards.
fn prove(disk: &Arc<dyn Disk>, requests: u32) -> anyhow::Result<()> {
    let shadow = Arc::new(Shadow::new(vec![0; SIZE]));
    drive(disk, &shadow, &plan(requests))?;
    alone(async {
        let io = disk.open_queue()?;
        for dropped in shadow.abandoned() {
            let now = disk_matrix::transfer::read(&*io, dropped.offset, dropped.bytes.len()).await?;
            shadow.settle(&dropped, &now)?;
        }
        verify::disk(disk, &shadow.contents()).await
    })
}

/// How a disk lies, once in a while.
#[derive(Clone, Copy, Debug)]
enum Lie {
    ForgetsWrites,
    WritesElsewhere,
    ZeroesTooMuch,
    DiscardsToGarbage,
    ForgetsTheLastSector,
    GrowsWithGarbage,
}

struct Liar {
    inner: Arc<dyn Disk>,
    lie: Lie,
    count: Arc<AtomicU64>,
}

struct LiarQueue {
    inner: Rc<dyn DiskIo>,
    lie: Lie,
    count: Arc<AtomicU64>,
}

impl Disk for Liar {
    fn name(&self) -> &str {
        "liar"
    }
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(LiarQueue {
            inner: self.inner.open_queue()?,
            lie: self.lie,
            count: Arc::clone(&self.count),
        }))
    }
}

impl LiarQueue {
    fn now(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % 50 == 49
    }
}

impl DiskIo for LiarQueue {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.inner.read(offset, bufs)
    }
    fn write(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        match self.lie {
            Lie::ForgetsWrites if self.now() => Box::pin(async move { (Ok(()), bufs) }),
            Lie::WritesElsewhere if self.now() && offset >= 512 => self.inner.write(offset - 512, bufs),
            Lie::ForgetsTheLastSector if total_len(&bufs) > 512 && bufs.len() == 1 && self.now() => {
                Box::pin(async move {
                    let keep = bufs[0].len() - 512;
                    let tail = bufs[0].split_off(keep);
                    let (result, mut bufs) = self.inner.write(offset, bufs).await;
                    drop(tail);
                    bufs.truncate(1);
                    (result, bufs)
                })
            }
            _ => self.inner.write(offset, bufs),
        }
    }
    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        match self.lie {
            Lie::DiscardsToGarbage => Box::pin(async move {
                let garbage = IoBuf::from_bytes(&vec![7; usize::try_from(len).unwrap()]).unwrap();
                self.inner.write(offset, vec![garbage]).await.0
            }),
            _ => self.inner.discard(offset, len),
        }
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let size = self.geometry().size_bytes;
        match self.lie {
            Lie::ZeroesTooMuch if offset + len + 512 <= size => self.inner.write_zeroes(offset, len + 512, mode),
            _ => self.inner.write_zeroes(offset, len, mode),
        }
    }
    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            let old = self.geometry().size_bytes;
            self.inner.grow(size_bytes).await?;
            if matches!(self.lie, Lie::GrowsWithGarbage) {
                let garbage = IoBuf::from_bytes(&[9; 512]).unwrap();
                self.inner.write(old, vec![garbage]).await.0?;
            }
            Ok(())
        })
    }
}

#[test]
fn honest_disks_pass() {
    let memory: Arc<dyn Disk> = Arc::new(InMemory::new(Geometry::of_size(SIZE as u64)));
    prove(&memory, 600).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE as u64).unwrap();
    let raw: Arc<dyn Disk> = Arc::new(RawDisk::open(file.path(), RawOptions::named("proof")).unwrap());
    prove(&raw, 600).unwrap();
}

#[test]
fn liars_are_found_out() {
    for lie in [
        Lie::ForgetsWrites,
        Lie::WritesElsewhere,
        Lie::ZeroesTooMuch,
        Lie::DiscardsToGarbage,
        Lie::ForgetsTheLastSector,
        Lie::GrowsWithGarbage,
    ] {
        let disk: Arc<dyn Disk> = Arc::new(Liar {
            inner: Arc::new(InMemory::new(Geometry::of_size(SIZE as u64))),
            lie,
            count: Arc::default(),
        });
        assert!(prove(&disk, 2400).is_err(), "{lie:?} was not noticed");
    }
}
