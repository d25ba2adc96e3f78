//! A queue whose reads are counted for whoever watches.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use disk::{DiskError, DiskFuture, DiskIo, Extent, Geometry, Transferred, ZeroMode};
use guestmem::IoBuf;

use crate::watch::Watch;

/// Tells of every read; all else is as it was.
pub(crate) struct WatchedIo<'a> {
    io: Rc<dyn DiskIo>,
    watch: &'a dyn Watch,
    read_bytes: Cell<u64>,
}

impl<'a> WatchedIo<'a> {
    pub(crate) fn new(io: Rc<dyn DiskIo>, watch: &'a dyn Watch) -> Self {
        Self {
            io,
            watch,
            read_bytes: Cell::new(0),
        }
    }

    /// Never ends once it shall stop: whoever polls all this looks at that first.
    async fn go_on(&self) {
        poll_fn(|context| match self.watch.is_stopped() {
            true => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await;
    }
}

impl DiskIo for WatchedIo<'_> {
    fn geometry(&self) -> Geometry {
        self.io.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let read = self.io.read(offset, bufs);
        Box::pin(async move {
            let (result, bufs) = read.await;
            let length: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
            self.read_bytes.set(self.read_bytes.get().saturating_add(length));
            // Tables are read more than once.
            let total = self.geometry().size_bytes.max(self.read_bytes.get());
            self.watch.progress(self.read_bytes.get(), total);
            self.go_on().await;
            (result, bufs)
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.io.write(offset, bufs)
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.io.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.io.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.io.write_zeroes(offset, len, mode)
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.io.grow(size_bytes)
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.io.extents(offset, len)
    }
}
