//! A cluster gets a new use only after the operations that knew its old one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use disk::{Disk, DiskError, DiskFuture, DiskIo, Geometry, Transferred, ZeroMode, total_len};
use guestmem::IoBuf;
use uring::{Executor, Ring};

use crate::jitter::turns;
use crate::{Lab, open_on, read, write};

/// Transfers of this length wait at the gate, bytes.
const GATED: u64 = 3 * 512;

/// A disk where some transfers wait while the gate is closed.
struct Gate {
    disk: Arc<dyn Disk>,
    closed: Arc<AtomicBool>,
}

impl Disk for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        let queue = self.disk.open_queue()?;
        let closed = Arc::clone(&self.closed);
        Ok(Rc::new(GateQueue { queue, closed }))
    }
}

struct GateQueue {
    queue: Rc<dyn DiskIo>,
    closed: Arc<AtomicBool>,
}

impl GateQueue {
    async fn pass(&self, bufs: &[IoBuf]) {
        if total_len(bufs) == GATED {
            std::future::poll_fn(|context| match self.closed.load(Ordering::Relaxed) {
                true => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                false => Poll::Ready(()),
            })
            .await;
        }
    }
}

impl DiskIo for GateQueue {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.pass(&bufs).await;
            self.queue.read(offset, bufs).await
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            self.pass(&bufs).await;
            self.queue.write(offset, bufs).await
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.queue.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.queue.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        self.queue.write_zeroes(offset, len, mode)
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        self.queue.grow(size_bytes)
    }
}

/// `drops`: the late write's future is thrown away while it waits.
fn late_write(drops: bool) {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 64M");
    let file = lab.load("a.qcow2");
    let closed = Arc::new(AtomicBool::new(false));
    let gate = Gate {
        disk: Arc::new(file.clone()),
        closed: Arc::clone(&closed),
    };
    let disk = open_on(Arc::new(gate), None);
    let mut executor = Executor::new(8).unwrap();
    let ended = executor.block_on(async {
        let io = disk.open_queue().unwrap();
        let cluster = 65536u64;
        write(&*io, 0, &[1; 65536]).await;
        io.flush().await.unwrap();
        closed.store(true, Ordering::Relaxed);
        let late = {
            let io = Rc::clone(&io);
            Ring::current().unwrap().spawn(async move {
                let bufs = vec![IoBuf::from_bytes(&[0xee; GATED as usize]).unwrap()];
                let mut write = io.write(4096, bufs);
                if drops {
                    std::future::poll_fn(|context| Poll::Ready(write.as_mut().poll(context).is_ready())).await;
                    drop(write);
                } else {
                    write.await.0.unwrap();
                }
            })
        };
        turns(5).await;
        io.discard(0, cluster).await.unwrap();
        for _ in 0..3 {
            io.flush().await.unwrap();
        }
        for i in 1..20 {
            write(&*io, i * cluster, &[2; 65536]).await;
        }
        closed.store(false, Ordering::Relaxed);
        late.await;
        for _ in 0..5 {
            turns(60).await;
        }
        for i in 1..20 {
            assert!(
                read(&*io, i * cluster, 65536).await == [2; 65536],
                "a late write landed in cluster {i}"
            );
        }
        // Now that it is over, the cluster it wrote to is free.
        let before = file.contents().len();
        for _ in 0..3 {
            io.flush().await.unwrap();
        }
        write(&*io, 30 * cluster, &[3; 65536]).await;
        assert_eq!(file.contents().len(), before, "what was freed is used again");
        disk.close().await.unwrap();
    });
    ended.unwrap();
    lab.check(&file, false);
}

#[test]
fn a_late_write_hits_no_other_data() {
    late_write(false);
}

#[test]
fn a_late_write_that_nobody_waits_for_hits_no_other_data() {
    late_write(true);
}
