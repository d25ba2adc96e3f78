//! A peer on a thread of its own behind the disk contract: calls go there by a channel, many at once.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use disk::{
    Access, Discard, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Geometry, Transferred, ZeroMode,
    total_len,
};
use disk_matrix::engine::Opened;
use guestmem::IoBuf;
use tokio::sync::{mpsc, oneshot};

/// What is asked of a peer.
pub enum Call {
    /// Read so many bytes from there.
    Read(u64, usize),
    /// Write these there.
    Write(u64, Vec<u8>),
    /// Zeroes.
    Zero(u64, u64),
    /// Everything durable.
    Flush,
}

type Answer = Result<Vec<u8>>;

/// A peer with an image open.
pub trait Peer: 'static {
    /// Size of the disk, bytes.
    fn size(&self) -> u64;
    /// Does what is asked; bytes for a read.
    fn call(self: Rc<Self>, call: Call) -> Pin<Box<dyn Future<Output = Answer>>>;
}

type Sender = mpsc::UnboundedSender<(Call, oneshot::Sender<Answer>)>;

/// Starts a peer's thread, opens the image there, and gives the disk.
pub fn start<P: Peer, F>(access: Access, open: impl FnOnce() -> F + Send + 'static) -> Result<Opened>
where
    F: Future<Output = Result<P>>,
{
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Call, oneshot::Sender<Answer>)>();
    let (told, opened) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let peer = match open().await {
                Ok(peer) => Rc::new(peer),
                Err(error) => {
                    let _ = told.send(Err(error));
                    return;
                }
            };
            let _ = told.send(Ok(peer.size()));
            while let Some((call, answer)) = receiver.recv().await {
                let done = Rc::clone(&peer).call(call);
                tokio::task::spawn_local(async move {
                    let _ = answer.send(done.await);
                });
            }
        });
        anyhow::Ok(())
    });
    let size = opened.recv().map_err(|_| anyhow!("the peer panicked"))??;
    let geometry = Geometry {
        access,
        discard: Discard::Unsupported,
        ..Geometry::of_size(size)
    };
    let disk = PeerDisk { sender, geometry };
    let last = disk.sender.clone();
    let close = Box::new(move || -> DiskFuture<'static, Result<()>> {
        Box::pin(async move {
            ask(&last, Call::Flush).await?;
            drop(last);
            drop(thread);
            Ok(())
        })
    });
    Ok(Opened {
        disk: Arc::new(disk),
        close,
    })
}

async fn ask(sender: &Sender, call: Call) -> Answer {
    let (answer, done) = oneshot::channel();
    sender.send((call, answer)).map_err(|_| anyhow!("the peer is gone"))?;
    done.await.context("the peer panicked")?
}

#[derive(Clone)]
struct PeerDisk {
    sender: Sender,
    geometry: Geometry,
}

impl Disk for PeerDisk {
    fn name(&self) -> &str {
        "peer"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl PeerDisk {
    async fn ask(&self, op: DiskOp, (offset, len): (u64, u64), call: Call) -> Result<Vec<u8>, DiskError> {
        self.geometry.check(op, offset, len)?;
        let answer = ask(&self.sender, call).await;
        answer.map_err(|error| DiskError::new(op, DiskErrorKind::Io).at(offset, len).because(error))
    }
}

impl DiskIo for PeerDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let len = total_len(&bufs);
            let call = Call::Read(offset, usize::try_from(len).unwrap_or(usize::MAX));
            match self.ask(DiskOp::Read, (offset, len), call).await {
                Err(error) => (Err(error), bufs),
                Ok(bytes) => {
                    let mut rest = bytes.as_slice();
                    for buf in &mut bufs {
                        let (head, tail) = rest.split_at_checked(buf.len()).unwrap_or((rest, &[]));
                        let _ = buf.copy_from(0, head);
                        rest = tail;
                    }
                    (Ok(()), bufs)
                }
            }
        })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let bytes: Vec<u8> = bufs.iter().flat_map(IoBuf::to_vec).collect();
            let range = (offset, bytes.len() as u64);
            let written = self.ask(DiskOp::Write, range, Call::Write(offset, bytes)).await;
            (written.map(drop), bufs)
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.ask(DiskOp::Flush, (0, 0), Call::Flush).await.map(drop) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let refused = self.geometry.check(DiskOp::Discard, offset, len);
        Box::pin(async move { refused })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            let call = Call::Zero(offset, len);
            self.ask(DiskOp::WriteZeroes, (offset, len), call).await.map(drop)
        })
    }
}
