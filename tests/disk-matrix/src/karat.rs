//! Karat's engine, opened as the harness made its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use disk::{Access, Disk, DiskFuture};
use disk_raw::{RawDisk, RawOptions, Role};

use crate::engine::{Engine, Opened};
use crate::recorder::Recorder;
use crate::stack::Stack;

/// The engine of `disk-qcow2` over files of `disk-raw`.
#[derive(Debug)]
pub struct Karat;

/// A file below an image.
fn file(path: &Path, access: Access) -> Result<Arc<dyn Disk>> {
    let options = RawOptions {
        access,
        role: Role::Container,
        ..RawOptions::named(path.display().to_string())
    };
    Ok(Arc::new(RawDisk::open(path, options)?))
}

impl Engine for Karat {
    fn name(&self) -> &'static str {
        "karat"
    }

    fn open<'a>(&'a self, stack: &'a Stack, access: Access) -> DiskFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let _ = file(stack.top(), access)?;
            bail!("the engine is not there yet")
        })
    }

    fn open_recorded(&self, _recorder: Arc<Recorder>, _backing: Option<PathBuf>) -> DiskFuture<'_, Result<Opened>> {
        Box::pin(async { bail!("the engine is not there yet") })
    }
}
