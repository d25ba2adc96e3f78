//! From a chain to a disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

use disk::{Access, Disk, DiskError, DiskErrorKind, DiskOp};
use disk_qcow2::{Compressor, LayerMap, Qcow2Disk, Qcow2Options};
use disk_raw::{CacheMode, Locking, RawDisk, RawOptions, Role};
use spec::DiskFormat;

use crate::chain::{Chain, Layer};
use crate::engine::{self, EngineError};

/// How to use a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whether the top image is written. Those below never are.
    pub access: Access,
    /// Whether the page cache is used.
    pub cache: CacheMode,
    /// Bound of the metadata kept in memory of each image, bytes.
    pub cache_bytes: u64,
    /// Whether others are kept out of the images.
    pub locking: Locking,
}

impl Default for OpenOptions {
    /// Read-only, cached, locked.
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            cache: CacheMode::Cached,
            cache_bytes: disk_qcow2::CACHE_BYTES,
            locking: Locking::Locked,
        }
    }
}

/// Why a chain can not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of it.
    #[error("the file of an image can not be used")]
    File(#[from] disk_raw::OpenError),
    /// An image of it.
    #[error("an image can not be used")]
    Image(#[from] disk_qcow2::OpenError),
    /// A raw image has something below it.
    #[error("image {name} is raw, and can not have a backing image")]
    Backed {
        /// Its name.
        name: String,
    },
    /// No more descriptors.
    #[error("image {name} can not be opened once more")]
    Descriptors {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No executor.
    #[error("images can not be worked on")]
    Engine(#[from] EngineError),
}

/// A chain in use.
pub struct Image {
    disk: Arc<dyn Disk>,
    /// The top, if it is one that has an end.
    qcow2: Option<Qcow2>,
}

/// A top that is a qcow2 image, and what it was opened from.
struct Qcow2 {
    image: Arc<Qcow2Disk>,
    layer: Layer,
    options: OpenOptions,
}

impl Image {
    /// What the chain shows.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// The map of the top image by itself, for the calling thread.
    pub(crate) fn layer_map(&self) -> Result<LayerMap, DiskError> {
        match &self.qcow2 {
            Some(top) => top.image.layer_map(),
            None => Err(DiskError::new(DiskOp::Extents, DiskErrorKind::Unsupported)),
        }
    }

    /// A way to write compressed clusters into the top image, for the calling thread.
    pub(crate) fn compressor(&self) -> Result<Compressor, DiskError> {
        match &self.qcow2 {
            Some(top) => top.image.compressor(),
            None => Err(DiskError::new(DiskOp::Write, DiskErrorKind::Unsupported)),
        }
    }

    /// What the top image was opened from, if it may have something below it.
    pub(crate) fn parts(&self) -> Option<(&Layer, &OpenOptions)> {
        self.qcow2.as_ref().map(|top| (&top.layer, &top.options))
    }

    /// Makes everything durable and marks the top image as cleanly closed. On a thread with an executor, when nothing is in flight.
    ///
    /// # Errors
    /// The file failed, now or in an earlier flush.
    pub async fn close(&self) -> Result<(), DiskError> {
        match (&self.qcow2, self.disk.geometry().access) {
            (_, Access::ReadOnly) => Ok(()),
            (Some(top), Access::ReadWrite) => top.image.close().await,
            (None, Access::ReadWrite) => self.disk.open_queue()?.flush().await,
        }
    }

    /// [`Image::close`], on a thread without an executor. Blocks.
    pub(crate) fn close_now(&self) -> Result<(), CloseError> {
        Ok(engine::block_on(self.close())??)
    }
}

/// Why what was written may not have arrived.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The file failed.
    #[error("what was written could not be made durable")]
    Disk(#[from] DiskError),
    /// No executor.
    #[error("what was written could not be made durable")]
    Engine(#[from] EngineError),
}

/// Opens a chain; its files stay the caller's as well. Takes locks as the options say: exclusive for a top that is written, else
/// shared, and they are the files' own, so that they last as long as any descriptor of them. Blocks.
///
/// # Errors
/// An image is damaged, in use, or needs something that is not supported.
pub fn open(chain: &Chain, options: &OpenOptions) -> Result<Image, OpenError> {
    engine::block_on(assemble(chain, options))?
}

/// [`open`], on a thread with an executor.
///
/// # Errors
/// As [`open`].
pub async fn assemble(chain: &Chain, options: &OpenOptions) -> Result<Image, OpenError> {
    let mut below: Option<Image> = None;
    let depth = chain.below().len();
    for (place, layer) in chain.layers().enumerate().collect::<Vec<_>>().into_iter().rev() {
        let options = match place {
            0 => *options,
            _ => OpenOptions {
                access: Access::ReadOnly,
                ..*options
            },
        };
        let backing = below.map(|image| image.disk);
        below = Some(match layer.format {
            DiskFormat::Raw if backing.is_some() => {
                return Err(OpenError::Backed {
                    name: layer.name.clone(),
                });
            }
            DiskFormat::Raw => {
                // Below other images its length is nobody's business.
                let role = if depth == 0 { Role::Disk } else { Role::Container };
                Image {
                    disk: file(&layer.file, &layer.name, &options, role)?,
                    qcow2: None,
                }
            }
            DiskFormat::Qcow2 => qcow2(layer, backing, &options).await?,
        });
    }
    // A chain has a top.
    below.ok_or_else(|| OpenError::Backed {
        name: chain.top().name.clone(),
    })
}

/// The chain below the top.
pub(crate) fn tail(chain: &Chain) -> Result<Option<Chain>, OpenError> {
    chain.tail().map_err(|source| OpenError::Descriptors {
        name: chain.top().name.clone(),
        source,
    })
}

/// One image on top of what it is given, whatever its header names.
pub(crate) async fn overlay(
    layer: &Layer,
    below: Option<Arc<dyn Disk>>,
    options: &OpenOptions,
) -> Result<Image, OpenError> {
    match layer.format {
        DiskFormat::Raw => Err(OpenError::Backed {
            name: layer.name.clone(),
        }),
        DiskFormat::Qcow2 => qcow2(layer, below, options).await,
    }
}

async fn qcow2(layer: &Layer, backing: Option<Arc<dyn Disk>>, options: &OpenOptions) -> Result<Image, OpenError> {
    let container = file(&layer.file, &layer.name, options, Role::Container)?;
    let data_file = match &layer.data_file {
        Some(data) => Some(file(&data.file, &data.name, options, Role::Container)?),
        None => None,
    };
    let image = Qcow2Disk::open(
        container,
        Qcow2Options {
            access: options.access,
            cache_bytes: options.cache_bytes,
            backing,
            data_file,
            ..Qcow2Options::named(&layer.name)
        },
    )
    .await?;
    let again = layer.again().map_err(|source| OpenError::Descriptors {
        name: layer.name.clone(),
        source,
    })?;
    Ok(Image {
        disk: Arc::clone(&image) as Arc<dyn Disk>,
        qcow2: Some(Qcow2 {
            image,
            layer: again,
            options: *options,
        }),
    })
}

/// A file as a disk. Whatever holds an image, or is below one, has sectors of 512 bytes.
pub(crate) fn file(file: &File, name: &str, options: &OpenOptions, role: Role) -> Result<Arc<dyn Disk>, OpenError> {
    let fd = file.try_clone().map_err(|source| OpenError::Descriptors {
        name: name.to_owned(),
        source,
    })?;
    let options = RawOptions {
        access: options.access,
        cache: options.cache,
        locking: options.locking,
        role,
        ..RawOptions::named(name)
    };
    Ok(Arc::new(RawDisk::from_fd(fd.into(), options)?))
}
