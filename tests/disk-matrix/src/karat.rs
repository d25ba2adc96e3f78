//! Karat's engine, opened as the harness made its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use disk::{Access, Disk, DiskFuture};
use disk_qcow2::{CACHE_BYTES, Qcow2Disk, Qcow2Options};
use disk_raw::{RawDisk, RawOptions, Role};

use crate::engine::{Engine, Opened};
use crate::recorder::{Recorder, RecorderDisk};
use crate::stack::{Format, Layer, Stack};

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

fn options(name: &Path, access: Access, backing: Option<Arc<dyn Disk>>) -> Qcow2Options {
    Qcow2Options {
        name: name.display().to_string(),
        access,
        cache_bytes: CACHE_BYTES,
        backing,
        data_file: None,
    }
}

/// What is below the top of a stack, from the bottom up.
async fn below(layers: &[Layer]) -> Result<Option<Arc<dyn Disk>>> {
    let mut under: Option<Arc<dyn Disk>> = None;
    for layer in layers.iter().rev() {
        let found = file(&layer.path, Access::ReadOnly)?;
        under = Some(match layer.format {
            Format::Raw => found,
            Format::Qcow2 => {
                let options = options(&layer.path, Access::ReadOnly, under);
                Qcow2Disk::open(found, options).await?
            }
        });
    }
    Ok(under)
}

fn opened(disk: Arc<Qcow2Disk>) -> Opened {
    let closing = Arc::clone(&disk);
    Opened {
        disk,
        close: Box::new(move || Box::pin(async move { closing.close().await.context("close") })),
    }
}

impl Engine for Karat {
    fn name(&self) -> &'static str {
        "karat"
    }

    fn open<'a>(&'a self, stack: &'a Stack, access: Access) -> DiskFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let backing = below(stack.layers.get(1..).unwrap_or_default()).await?;
            let data_file = stack.data_file.as_deref().map(|path| file(path, access)).transpose()?;
            let options = Qcow2Options {
                data_file,
                ..options(stack.top(), access, backing)
            };
            Ok(opened(Qcow2Disk::open(file(stack.top(), access)?, options).await?))
        })
    }

    fn open_recorded(&self, recorder: Arc<Recorder>, backing: Option<PathBuf>) -> DiskFuture<'_, Result<Opened>> {
        Box::pin(async move {
            let backing = match backing {
                Some(path) => {
                    let image = fs::read(&path)?;
                    let below = RecorderDisk(Recorder::new(image, 1));
                    Some(Arc::new(disk::ReadOnly::new(Arc::new(below))) as Arc<dyn Disk>)
                }
                None => None,
            };
            let options = options(Path::new("recorded"), Access::ReadWrite, backing);
            let file = Arc::new(RecorderDisk(recorder));
            Ok(opened(Qcow2Disk::open(file, options).await?))
        })
    }
}
