//! Disks with a will of their own, for tests.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk::{Disk, DiskError, DiskFuture, DiskIo, DiskOp, Geometry, InMemory, Transferred, ZeroMode};
use guestmem::IoBuf;
use uring::Bell;

/// A disk of 1 MiB that holds back reads of its first sector until a bell rings, and that grows when it is told.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) disk: InMemory,
    pub(crate) bell: Bell,
    hidden: Arc<AtomicU64>,
    /// Reads held back so far.
    begun: Arc<AtomicU64>,
}

impl Held {
    pub(crate) fn new() -> Self {
        Self {
            disk: InMemory::new(Geometry::of_size(1 << 20)),
            bell: Bell::new(),
            hidden: Arc::default(),
            begun: Arc::default(),
        }
    }

    /// Waits until `count` reads have been held back, since the beginning.
    pub(crate) fn wait_begun(&self, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.begun.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "nothing was held back");
            std::thread::yield_now();
        }
    }

    /// A disk that shows all but this many bytes, until it is told to hide fewer.
    pub(crate) fn hide(&self, bytes: u64) {
        self.hidden.store(bytes, Ordering::SeqCst);
    }

    fn shown(&self) -> Geometry {
        let geometry = Disk::geometry(&self.disk);
        Geometry {
            size_bytes: geometry.size_bytes - self.hidden.load(Ordering::SeqCst),
            ..geometry
        }
    }
}

impl Disk for Held {
    fn name(&self) -> &str {
        "held"
    }
    fn geometry(&self) -> Geometry {
        self.shown()
    }
    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(HeldIo(self.disk.open_queue()?, self.clone())))
    }
}

struct HeldIo(Rc<dyn DiskIo>, Held);

impl DiskIo for HeldIo {
    fn geometry(&self) -> Geometry {
        self.1.shown()
    }
    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let len = bufs.iter().map(|buf| buf.len() as u64).sum();
            if let Err(error) = self.geometry().check(DiskOp::Read, offset, len) {
                return (Err(error), bufs);
            }
            if offset == 0 {
                self.1.begun.fetch_add(1, Ordering::SeqCst);
                self.1.bell.rung().await;
            }
            self.0.read(offset, bufs).await
        })
    }
    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.0.write(offset, bufs)
    }
    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.0.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.0.write_zeroes(offset, len, mode)
    }
}
