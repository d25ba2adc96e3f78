//! A disk whose operations take a few turns each, and not always the same number: what starts first need not end first.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use disk::{Disk, DiskError, DiskFuture, DiskIo, Extent, Geometry, Transferred, ZeroMode};
use guestmem::IoBuf;

/// See the module.
pub(crate) struct Jitter {
    disk: Arc<dyn Disk>,
    most: u64,
    seed: Arc<AtomicU64>,
}

impl Jitter {
    /// Operations of `disk` take up to `most` turns.
    pub(crate) fn new(disk: Arc<dyn Disk>, most: u64) -> Self {
        Self {
            disk,
            most,
            seed: Arc::new(AtomicU64::new(1)),
        }
    }
}

impl Disk for Jitter {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(Queue {
            queue: self.disk.open_queue()?,
            most: self.most,
            seed: Arc::clone(&self.seed),
        }))
    }
}

struct Queue {
    queue: Rc<dyn DiskIo>,
    most: u64,
    seed: Arc<AtomicU64>,
}

impl Queue {
    async fn turns(&self) {
        let mut seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        seed ^= seed >> 29;
        turns((seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) % (self.most + 1)).await;
    }
}

/// Lets others have `count` turns (at most 64).
pub(crate) async fn turns(count: u64) {
    let mut left = count % 64;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.turns().await;
            let read = self.queue.read(offset, bufs).await;
            self.turns().await;
            read
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.turns().await;
            let written = self.queue.write(offset, bufs).await;
            self.turns().await;
            written
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.turns().await;
            self.queue.flush().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.turns().await;
            self.queue.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.turns().await;
            self.queue.write_zeroes(offset, len, mode).await
        })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.turns().await;
            self.queue.grow(size_bytes).await
        })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.queue.extents(offset, len)
    }
}
