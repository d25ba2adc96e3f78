//! imago 0.2.6 (MIT).

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use disk::{Access, DiskFuture};
use disk_matrix::engine::{Abilities, Engine, Opened};
use disk_matrix::recorder::{Change, Recorder};
use disk_matrix::stack::Stack;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{FormatAccess, Storage};

use crate::call::{Call, Peer, start};

/// The engine.
pub struct Imago;

struct Image<S: Storage + 'static>(FormatAccess<S>);

impl<S: Storage + 'static> Peer for Image<S> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn call(self: Rc<Self>, call: Call) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>> {
        Box::pin(async move {
            match call {
                Call::Read(offset, len) => {
                    let mut bytes = vec![0; len];
                    self.0.read(bytes.as_mut_slice(), offset).await?;
                    return Ok(bytes);
                }
                Call::Write(offset, bytes) => self.0.write(bytes.as_slice(), offset).await?,
                Call::Zero(offset, len) => self.0.write_zeroes(offset, len).await?,
                Call::Flush => {
                    self.0.flush().await?;
                    self.0.sync().await?;
                }
            }
            Ok(Vec::new())
        })
    }
}

impl Engine for Imago {
    fn name(&self) -> &'static str {
        "imago"
    }

    fn open<'a>(&'a self, stack: &'a Stack, access: Access) -> DiskFuture<'a, Result<Opened>> {
        let path = stack.top().to_path_buf();
        Box::pin(async move {
            start(access, move || async move {
                let writable = access == Access::ReadWrite;
                let mut image = Qcow2::<imago::file::File>::open_path(&path, writable).await?;
                image.open_implicit_dependencies().await?;
                Ok(Image(FormatAccess::new(image)))
            })
        })
    }

    fn open_recorded(&self, file: Arc<Recorder>, backing: Option<PathBuf>) -> DiskFuture<'_, Result<Opened>> {
        Box::pin(async move {
            start(Access::ReadWrite, move || async move {
                let mut image = Qcow2::<Recorded>::open_image(Recorded::new(file), true).await?;
                let below = match backing {
                    None => None,
                    Some(path) => {
                        let bytes = std::fs::read(path)?;
                        let raw = Raw::open_image(Recorded::new(Recorder::new(bytes, 1)), false).await?;
                        Some(FormatAccess::new(raw))
                    }
                };
                image.set_backing(below);
                image.open_implicit_dependencies().await.context("dependencies")?;
                Ok(Image(FormatAccess::new(image)))
            })
        })
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            grow: false,
            abandon: false,
            ..Abilities::ALL
        }
    }
}

/// A recorded file as imago's storage.
struct Recorded {
    file: Arc<Recorder>,
    own: CommonStorageHelper,
}

impl Recorded {
    fn new(file: Arc<Recorder>) -> Self {
        Self {
            file,
            own: CommonStorageHelper::default(),
        }
    }

    async fn change(&self, change: Change) {
        let number = self.file.begin(change);
        tokio::task::yield_now().await;
        self.file.done(number);
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorded file")
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorded file")
    }
}

impl Storage for Recorded {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.len() as u64)
    }

    async unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; bufv.len() as usize];
        self.file.read(offset as usize, &mut bytes);
        tokio::task::yield_now().await;
        bufv.copy_from_slice(&bytes);
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; bufv.len() as usize];
        bufv.copy_into_slice(&mut bytes);
        self.change(Change::Write(offset as usize, bytes)).await;
        Ok(())
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Change::Write(offset as usize, vec![0; length as usize]))
            .await;
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let number = self.file.begin_sync();
        tokio::task::yield_now().await;
        self.file.sync_done(number);
        Ok(())
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.own
    }

    async fn resize(&self, new_size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.change(Change::Grow(new_size as usize)).await;
        Ok(())
    }
}
