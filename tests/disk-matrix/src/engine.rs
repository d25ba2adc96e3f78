//! What is put to the proof: something that opens a stack of files as a disk.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use disk::{Access, Disk, DiskFuture};

use crate::recorder::Recorder;
use crate::stack::Stack;

/// Ends the use of an image in good order: everything durable, nothing left to mend.
pub type Closer = Box<dyn FnOnce() -> DiskFuture<'static, Result<()>> + Send>;

/// An image in use.
pub struct Opened {
    /// Its contents.
    pub disk: Arc<dyn Disk>,
    /// Closes it; dropped without a call, it is an unclean stop.
    pub close: Closer,
}

/// A qcow2 implementation. Futures run on an executor of `uring`.
pub trait Engine: Sync {
    /// As in reports and on the command line.
    fn name(&self) -> &'static str;

    /// Opens the top of a stack.
    fn open<'a>(&'a self, stack: &'a Stack, access: Access) -> DiskFuture<'a, Result<Opened>>;

    /// Opens the image that a recorder holds, over a backing file in the raw format that stays as it is.
    fn open_recorded(&self, _file: Arc<Recorder>, _backing: Option<PathBuf>) -> DiskFuture<'_, Result<Opened>> {
        Box::pin(async { bail!("{} can not be recorded", self.name()) })
    }

    /// Whether it grows disks, and takes discards and write-zeroes.
    fn abilities(&self) -> Abilities {
        Abilities::ALL
    }
}

/// What is asked of an engine.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// [`disk::DiskIo::grow`].
    pub grow: bool,
    /// [`disk::DiskIo::discard`] and [`disk::DiskIo::write_zeroes`].
    pub zero: bool,
    /// Futures that are dropped half-way.
    pub abandon: bool,
}

impl Abilities {
    /// Everything.
    pub const ALL: Self = Self {
        grow: true,
        zero: true,
        abandon: true,
    };
}
