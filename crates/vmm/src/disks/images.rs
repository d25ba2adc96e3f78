//! From the files of a chain to one disk.

use std::fs::File;
use std::sync::Arc;

use disk::{Access, DiskError};
use disk_image::live::Switch;
use disk_image::{Chain, DataFile, Image, Layer, OpenOptions};
use disk_raw::{CacheMode, RawDisk, RawOptions, SectorSize};
use spec::{DiskCache, DiskFormat, DiskSector, DiskSpec};

use super::error::StackError;
use crate::files::{ChainFiles, LayerFiles};

/// Tables of all images of a disk kept in memory, bytes: those of 256 GiB in clusters of 64 KiB.
const CACHE_BYTES: u64 = 32 << 20;
/// Of each of many images at least.
const LAYER_CACHE_BYTES_MIN: u64 = 1 << 20;

/// A chain in use.
pub(super) struct Images {
    /// What everybody uses, and what changes under them.
    pub(super) switch: Switch,
    /// What has to be closed, the top last. A raw image with large sectors is not among them: what was written to it is safe in
    /// the host's page cache already.
    pub(super) images: Vec<Arc<Image>>,
    /// How the image on top is used, and whatever takes its place.
    pub(super) options: OpenOptions,
}

/// Bound of the tables kept in memory of each of `depth` images, bytes.
pub(super) fn cache_bytes(depth: usize) -> u64 {
    let depth = u64::try_from(depth).unwrap_or(u64::MAX).max(1);
    (CACHE_BYTES / depth).max(LAYER_CACHE_BYTES_MIN)
}

impl Images {
    /// Opens all of them. Called on a thread with an executor.
    pub(super) async fn open(spec: &DiskSpec, files: ChainFiles) -> Result<Self, StackError> {
        check(spec, &files)?;
        let options = OpenOptions {
            access: access(spec),
            cache: cache(spec),
            cache_bytes: cache_bytes(files.0.len()),
            ..OpenOptions::default()
        };
        let mut layers = files.0.into_iter();
        let Some(top) = layers.next() else {
            return Err(wrong(spec, "it has no image"));
        };
        if spec.sector != DiskSector::B512 && layers.len() == 0 {
            return Self::raw(spec, top, options);
        }
        let chain = Chain::new(layer(top), layers.map(layer).collect());
        let opened = disk_image::assemble(&chain, &options).await;
        let image = opened.map_err(|source| StackError::Image {
            disk: spec.name.to_string(),
            source: Box::new(source),
        })?;
        Ok(Self {
            switch: Switch::new(image.disk()),
            images: vec![Arc::new(image)],
            options,
        })
    }

    /// Makes everything durable and the image on top a whole one. Nothing is in flight.
    pub(super) async fn close(&self) -> Result<(), DiskError> {
        for image in self.images.iter().rev() {
            image.close().await?;
        }
        Ok(())
    }

    fn raw(spec: &DiskSpec, files: LayerFiles, options: OpenOptions) -> Result<Self, StackError> {
        let raw = RawOptions {
            access: options.access,
            cache: options.cache,
            sector: match spec.sector {
                DiskSector::B512 => SectorSize::B512,
                DiskSector::B4096 => SectorSize::B4096,
            },
            ..RawOptions::named(files.layer.name)
        };
        let opened = RawDisk::from_fd(files.image, raw).map_err(|source| StackError::Raw {
            disk: spec.name.to_string(),
            source,
        })?;
        Ok(Self {
            switch: Switch::new(Arc::new(opened)),
            images: Vec::new(),
            options,
        })
    }
}

pub(super) fn layer(files: LayerFiles) -> Layer {
    let LayerFiles { layer, image, data } = files;
    Layer {
        name: layer.name,
        format: layer.format,
        file: File::from(image),
        writable: layer.writable,
        data_file: layer.data_file.zip(data).map(|(name, file)| DataFile {
            name,
            file: file.into(),
        }),
    }
}

/// What would be no use to open.
fn check(spec: &DiskSpec, files: &ChainFiles) -> Result<(), StackError> {
    for (place, files) in files.0.iter().enumerate() {
        let layer = &files.layer;
        let written = place == 0 && !spec.read_only;
        if layer.writable != written {
            let (wanted, opened) = if written {
                ("writing", "reading")
            } else {
                ("reading", "writing")
            };
            let why = format!("{} was opened for {opened} and not for {wanted}", layer.name);
            return Err(wrong(spec, why));
        }
        if layer.format == DiskFormat::Qcow2 && spec.sector != DiskSector::B512 {
            let why = "qcow2 images have sectors of 512 bytes: leave sector_size out, or convert it to raw";
            return Err(wrong(spec, why));
        }
    }
    Ok(())
}

fn wrong(spec: &DiskSpec, why: impl Into<String>) -> StackError {
    StackError::Chain {
        disk: spec.name.to_string(),
        why: why.into(),
    }
}

const fn access(spec: &DiskSpec) -> Access {
    if spec.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

const fn cache(spec: &DiskSpec) -> CacheMode {
    match spec.cache {
        DiskCache::Cached | DiskCache::Writethrough => CacheMode::Cached,
        DiskCache::Direct => CacheMode::Direct,
    }
}
