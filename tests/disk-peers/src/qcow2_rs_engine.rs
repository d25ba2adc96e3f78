//! qcow2-rs 0.1.6 (MIT or Apache-2.0).

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use disk::{Access, DiskFuture};
use disk_matrix::engine::{Abilities, Engine, Opened};
use disk_matrix::recorder::{Change, Recorder};
use disk_matrix::stack::Stack;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Result;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::{qcow2_alloc_dev, qcow2_setup_dev_tokio};

use crate::call::{Call, Peer, start};

/// The engine.
pub struct Qcow2Rs;

struct Image<T: Qcow2IoOps>(Qcow2Dev<T>);

fn words(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("{error:?}")
}

impl<T: Qcow2IoOps + 'static> Peer for Image<T> {
    fn size(&self) -> u64 {
        self.0.info.virtual_size()
    }

    fn call(self: Rc<Self>, call: Call) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>> {
        Box::pin(async move {
            match call {
                Call::Read(offset, len) => {
                    let mut bytes = Qcow2IoBuf::<u8>::new(len);
                    let count = self.0.read_at(&mut bytes, offset).await.map_err(words)?;
                    if count != len {
                        bail!("{count} bytes read of {len}");
                    }
                    return Ok(bytes.to_vec());
                }
                Call::Write(offset, bytes) => {
                    let mut aligned = Qcow2IoBuf::<u8>::new(bytes.len());
                    aligned.copy_from_slice(&bytes);
                    self.0.write_at(&aligned, offset).await.map_err(words)?;
                }
                Call::Zero(..) => bail!("no zeroes"),
                Call::Flush => {
                    self.0.flush_meta().await.map_err(words)?;
                    self.0.fsync_range(0, usize::MAX).await.map_err(words)?;
                }
            }
            Ok(Vec::new())
        })
    }
}

impl Engine for Qcow2Rs {
    fn name(&self) -> &'static str {
        "qcow2-rs"
    }

    fn open<'a>(&'a self, stack: &'a Stack, access: Access) -> DiskFuture<'a, Result<Opened>> {
        let path = stack.top().to_path_buf();
        Box::pin(async move {
            start(access, move || async move {
                let params = Qcow2DevParams::new(9, None, None, access == Access::ReadOnly, false);
                let dev = qcow2_setup_dev_tokio(&path, &params).await.map_err(words)?;
                Ok(Image(dev))
            })
        })
    }

    fn open_recorded(&self, file: Arc<Recorder>, backing: Option<PathBuf>) -> DiskFuture<'_, Result<Opened>> {
        Box::pin(async move {
            start(Access::ReadWrite, move || async move {
                if backing.is_some() {
                    bail!("no raw backing files");
                }
                let params = Qcow2DevParams::new(9, None, None, false, false);
                let io = Recorded(file);
                let (dev, _) = qcow2_alloc_dev(Path::new("recorded"), io, &params)
                    .await
                    .map_err(words)?;
                dev.qcow2_prep_io().await.map_err(words)?;
                Ok(Image(dev))
            })
        })
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            grow: false,
            zero: false,
            abandon: false,
        }
    }
}

/// A recorded file as qcow2-rs wants it.
struct Recorded(Arc<Recorder>);

impl Recorded {
    async fn change(&self, change: Change) {
        let number = self.0.begin(change);
        tokio::task::yield_now().await;
        self.0.done(number);
    }
}

impl Qcow2IoOps for Recorded {
    async fn read_to(&self, offset: u64, buf: &mut [u8]) -> Qcow2Result<usize> {
        let mut bytes = vec![0; buf.len()];
        self.0.read(offset as usize, &mut bytes);
        tokio::task::yield_now().await;
        buf.copy_from_slice(&bytes);
        Ok(buf.len())
    }

    async fn write_from(&self, offset: u64, buf: &[u8]) -> Qcow2Result<()> {
        self.change(Change::Write(offset as usize, buf.to_vec())).await;
        Ok(())
    }

    async fn fallocate(&self, offset: u64, len: usize, _flags: u32) -> Qcow2Result<()> {
        self.change(Change::Zero(offset as usize, len)).await;
        Ok(())
    }

    async fn fsync(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        let number = self.0.begin_sync();
        tokio::task::yield_now().await;
        self.0.sync_done(number);
        Ok(())
    }
}
