//! From the files of a chain to one disk: lowest image first, each the backing of the next.

use std::sync::Arc;

use disk::{Access, Disk, DiskError};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use disk_raw::{CacheMode, RawDisk, RawOptions, Role, SectorSize};
use spec::{DiskCache, DiskFormat, DiskSector, DiskSpec};

use super::stack::StackError;
use crate::files::{ChainFiles, LayerFiles};

/// Tables of the image on top kept in memory, bytes: those of 128 GiB in clusters of 64 KiB.
const TOP_CACHE_BYTES: u64 = 16 << 20;
/// Of all images below together.
const BELOW_CACHE_BYTES: u64 = 16 << 20;
/// Of each of them at least.
const LAYER_CACHE_BYTES_MIN: u64 = 1 << 20;

/// A chain in use.
pub(super) struct Images {
    pub(super) top: Arc<dyn Disk>,
    /// The top, if it is to be closed.
    written: Option<Arc<Qcow2Disk>>,
}

impl Images {
    /// Opens all of them. Called on a thread with an executor.
    pub(super) async fn open(spec: &DiskSpec, files: ChainFiles) -> Result<Self, StackError> {
        check(spec, &files)?;
        let depth = files.0.len();
        let below_cache = BELOW_CACHE_BYTES / u64::try_from(depth).unwrap_or(u64::MAX).max(1);
        let mut images: Option<Self> = None;
        for (place, layer) in files.0.into_iter().enumerate().rev() {
            let cache_bytes = if place == 0 {
                TOP_CACHE_BYTES
            } else {
                below_cache.max(LAYER_CACHE_BYTES_MIN)
            };
            let backing = images.map(|images| images.top);
            let is_whole = depth == 1;
            images = Some(match layer.layer.format {
                DiskFormat::Raw => Self::raw(spec, layer, is_whole)?,
                DiskFormat::Qcow2 => Self::qcow2(spec, layer, backing, cache_bytes).await?,
            });
        }
        images.ok_or_else(|| StackError::Chain {
            disk: spec.name.to_string(),
            why: "it has no image".to_owned(),
        })
    }

    /// Makes everything durable and the image on top a whole one. Nothing is in flight. What was written to raw images is safe
    /// in the host's page cache already.
    pub(super) async fn close(&self) -> Result<(), DiskError> {
        match &self.written {
            Some(image) => image.close().await,
            None => Ok(()),
        }
    }

    fn raw(spec: &DiskSpec, files: LayerFiles, is_whole: bool) -> Result<Self, StackError> {
        let mut options = options(spec, &files.layer.name, files.layer.writable);
        if is_whole {
            options.sector = match spec.sector {
                DiskSector::B512 => SectorSize::B512,
                DiskSector::B4096 => SectorSize::B4096,
            };
        } else {
            options.role = Role::Container;
        }
        Ok(Self {
            top: file(spec, files.image, options)?,
            written: None,
        })
    }

    async fn qcow2(
        spec: &DiskSpec,
        files: LayerFiles,
        backing: Option<Arc<dyn Disk>>,
        cache_bytes: u64,
    ) -> Result<Self, StackError> {
        let LayerFiles { layer, image, data } = files;
        let container = |name: &str| RawOptions {
            role: Role::Container,
            ..options(spec, name, layer.writable)
        };
        let data_file = match data {
            Some(data) => Some(file(spec, data, container(layer.data_file.as_deref().unwrap_or("")))?),
            None => None,
        };
        let image = file(spec, image, container(&layer.name))?;
        let opened = Qcow2Disk::open(
            image,
            Qcow2Options {
                access: access(layer.writable),
                cache_bytes,
                backing,
                data_file,
                ..Qcow2Options::named(layer.name)
            },
        );
        let opened = opened.await.map_err(|source| StackError::Qcow2 {
            disk: spec.name.to_string(),
            source: Box::new(source),
        })?;
        Ok(Self {
            written: layer.writable.then(|| Arc::clone(&opened)),
            top: opened,
        })
    }
}

/// What would be no use to open.
fn check(spec: &DiskSpec, files: &ChainFiles) -> Result<(), StackError> {
    let fail = |why: String| {
        Err(StackError::Chain {
            disk: spec.name.to_string(),
            why,
        })
    };
    for (place, files) in files.0.iter().enumerate() {
        let layer = &files.layer;
        let written = place == 0 && !spec.read_only;
        if layer.writable != written {
            let (wanted, opened) = if written {
                ("writing", "reading")
            } else {
                ("reading", "writing")
            };
            return fail(format!("{} was opened for {opened} and not for {wanted}", layer.name));
        }
    }
    let has_qcow2 = files.0.iter().any(|files| files.layer.format == DiskFormat::Qcow2);
    if has_qcow2 && spec.sector != DiskSector::B512 {
        return fail("qcow2 images have sectors of 512 bytes: leave sector_size out, or convert it to raw".to_owned());
    }
    let leads_on = |files: &&LayerFiles| files.layer.format == DiskFormat::Raw;
    let above = files.0.split_last().map_or(&[][..], |(_, above)| above);
    match above.iter().find(leads_on) {
        Some(raw) => fail(format!(
            "{} is raw and can not be backed by another image",
            raw.layer.name
        )),
        None => Ok(()),
    }
}

fn file(spec: &DiskSpec, fd: std::os::fd::OwnedFd, options: RawOptions) -> Result<Arc<dyn Disk>, StackError> {
    let opened = RawDisk::from_fd(fd, options).map_err(|source| StackError::Raw {
        disk: spec.name.to_string(),
        source,
    })?;
    Ok(Arc::new(opened))
}

fn options(spec: &DiskSpec, name: &str, writable: bool) -> RawOptions {
    RawOptions {
        access: access(writable),
        cache: match spec.cache {
            DiskCache::Cached | DiskCache::Writethrough => CacheMode::Cached,
            DiskCache::Direct => CacheMode::Direct,
        },
        ..RawOptions::named(name)
    }
}

const fn access(writable: bool) -> Access {
    if writable { Access::ReadWrite } else { Access::ReadOnly }
}
