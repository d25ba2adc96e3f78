//! New images.

use std::fs::File;
use std::io;
use std::sync::Arc;

use disk::{Access, Disk, DiskError, DiskIo, ZeroMode};
use disk_qcow2::ops::{self, BackingName, Preallocation};
use disk_raw::Role;
use rustix::fs::FallocateFlags;

use crate::engine::{self, EngineError};
use crate::open::{self, OpenError, OpenOptions};

/// Unit of disk sizes, bytes.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// What zeroes are written by when space is not only to be reserved, bytes.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// A new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateOptions {
    /// The disk's bytes, one after the other.
    Raw {
        /// Size of the disk, bytes; rounded up to whole sectors of 512.
        size_bytes: u64,
        /// What is allocated at once. There is no metadata to allocate by itself.
        preallocation: Preallocation,
    },
    /// A qcow2 image.
    Qcow2(ops::CreateOptions),
}

impl CreateOptions {
    /// A sparse raw image.
    pub const fn raw(size_bytes: u64) -> Self {
        Self::Raw {
            size_bytes,
            preallocation: Preallocation::Off,
        }
    }

    /// A qcow2 image as QEMU makes it unless told otherwise.
    pub const fn qcow2(size_bytes: u64) -> Self {
        Self::Qcow2(ops::CreateOptions::of_size(size_bytes))
    }

    /// A qcow2 image on top of another: `name` as it is to be stored, a path that is absolute or relative to the new image.
    pub fn overlay(size_bytes: u64, name: impl Into<String>, format: spec::DiskFormat) -> Self {
        Self::Qcow2(ops::CreateOptions {
            backing: Some(BackingName {
                name: name.into(),
                format: format_name(format).to_owned(),
            }),
            ..ops::CreateOptions::of_size(size_bytes)
        })
    }

    /// Size of the disk, bytes.
    pub const fn size_bytes(&self) -> u64 {
        match self {
            Self::Raw { size_bytes, .. } => size_bytes.next_multiple_of(SECTOR_BYTES),
            Self::Qcow2(options) => options.size_bytes.next_multiple_of(SECTOR_BYTES),
        }
    }

    /// The format.
    pub const fn format(&self) -> spec::DiskFormat {
        match self {
            Self::Raw { .. } => spec::DiskFormat::Raw,
            Self::Qcow2(_) => spec::DiskFormat::Qcow2,
        }
    }
}

/// A format as images record it.
pub(crate) const fn format_name(format: spec::DiskFormat) -> &'static str {
    match format {
        spec::DiskFormat::Raw => "raw",
        spec::DiskFormat::Qcow2 => "qcow2",
    }
}

/// Why an image could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The file.
    #[error("the new image can not be opened")]
    Open(#[from] OpenError),
    /// The options, or the file again.
    #[error("the new qcow2 image can not be made")]
    Qcow2(#[from] ops::CreateError),
    /// Raw images have none.
    #[error("a raw image has no metadata to allocate: use no preallocation, falloc or full")]
    RawMetadata,
    /// The size is nothing, or what no file has.
    #[error("no image can have {0} bytes")]
    Size(u64),
    /// The file can not be made that long, or reserve the space.
    #[error("the new image can not have its size")]
    Allocate(#[source] io::Error),
    /// It can not be written.
    #[error("the new image can not be written")]
    Write(#[from] DiskError),
    /// No executor.
    #[error("the new image can not be made")]
    Engine(#[from] EngineError),
}

/// Creates an image in `target`, over whatever is there. Locks the target until its last descriptor is closed. `data_file` is the
/// external data file, if the options name one. Durable when this returns. Blocks.
///
/// # Errors
/// The options exclude each other, the file is in use, or it fails.
pub fn create(target: &File, data_file: Option<&File>, options: &CreateOptions) -> Result<(), CreateError> {
    match options {
        CreateOptions::Raw { preallocation, .. } => raw(target, options.size_bytes(), *preallocation),
        CreateOptions::Qcow2(options) => {
            let container = emptied(target)?;
            let data = data_file.map(emptied).transpose()?;
            engine::block_on(async {
                let data = data.map(|data| data.open_queue()).transpose()?;
                ops::create(&*container.open_queue()?, data.as_deref(), options).await?;
                Ok(())
            })?
        }
    }
}

/// `target` as an empty disk, if it is a file; a block device stays as it is.
fn emptied(target: &File) -> Result<Arc<dyn Disk>, CreateError> {
    let options = OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    };
    let open = || open::file(target, "new image", &options, Role::Container);
    // Locked before anything is lost, and looked at again after.
    let opened = open()?;
    if !is_file(target)? {
        return Ok(opened);
    }
    drop(opened);
    target.set_len(0).map_err(CreateError::Allocate)?;
    Ok(open()?)
}

fn is_file(target: &File) -> Result<bool, CreateError> {
    Ok(target.metadata().map_err(CreateError::Allocate)?.is_file())
}

fn raw(target: &File, size_bytes: u64, preallocation: Preallocation) -> Result<(), CreateError> {
    if size_bytes == 0 || i64::try_from(size_bytes).is_err() {
        return Err(CreateError::Size(size_bytes));
    }
    if preallocation == Preallocation::Metadata {
        return Err(CreateError::RawMetadata);
    }
    let disk = emptied(target)?;
    let reserves = preallocation != Preallocation::Off;
    if reserves && is_file(target)? {
        let reserved = rustix::fs::fallocate(target, FallocateFlags::empty(), 0, size_bytes);
        reserved.map_err(|errno| CreateError::Allocate(errno.into()))?;
    }
    engine::block_on(async {
        let io = disk.open_queue()?;
        let was = io.geometry().size_bytes;
        io.grow(size_bytes.max(was)).await?;
        match preallocation {
            Preallocation::Full => write_zeroes(&*io, size_bytes).await?,
            // What a device holds is not what a new disk holds.
            _ if was > 0 => io.write_zeroes(0, size_bytes, ZeroMode::MayUnmap).await?,
            _ => {}
        }
        io.flush().await?;
        Ok(())
    })?
}

/// Writes them, rather than having them be.
async fn write_zeroes(io: &dyn DiskIo, size_bytes: u64) -> Result<(), DiskError> {
    let mut at = 0;
    let mut bufs = Vec::new();
    while at < size_bytes {
        let len = usize::try_from(ZERO_STEP_BYTES.min(size_bytes - at)).unwrap_or_default();
        if bufs.iter().map(guestmem::IoBuf::len).sum::<usize>() != len {
            let zeroes = guestmem::IoBuf::heap(len, 4096);
            bufs = vec![zeroes.map_err(|error| crate::copy::no_memory(disk::DiskOp::Write, error))?];
        }
        let result;
        (result, bufs) = io.write(at, bufs).await;
        result?;
        at += len as u64;
    }
    Ok(())
}
