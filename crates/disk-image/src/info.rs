//! What is known about an image without reading its data.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use disk::DiskError;
use disk_qcow2::ops;
use disk_raw::{Locking, Role};
use serde::{Deserialize, Serialize};
use spec::DiskFormat;

use crate::chain::{Chain, Layer};
use crate::engine::{self, EngineError};
use crate::open::{self, OpenError, OpenOptions};

/// Unit of `st_blocks`, bytes (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// What is known about one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// What it is called.
    pub name: String,
    /// How its bytes are read.
    pub format: DiskFormat,
    /// Size of the disk it shows, bytes.
    pub virtual_size_bytes: u64,
    /// Length of its file, bytes.
    pub file_size_bytes: u64,
    /// Space its file takes, bytes; 0 for a block device.
    pub allocated_bytes: u64,
    /// What a qcow2 image tells about itself.
    pub qcow2: Option<ops::ImageInfo>,
}

/// Why nothing is known about an image.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// The file.
    #[error("image {name} can not be looked at")]
    File {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file, again.
    #[error("an image can not be looked at")]
    Open(#[from] OpenError),
    /// A queue of the file.
    #[error("image {name} can not be read")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// Its tables.
    #[error("image {name} can not be understood")]
    Qcow2 {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: ops::InfoError,
    },
    /// No executor.
    #[error("images can not be looked at")]
    Engine(#[from] EngineError),
}

/// What is known about the images of a chain, top first. Takes no locks: an image in use may be shown half changed. Blocks.
///
/// # Errors
/// A file can not be read, or a header is refused.
pub fn info(chain: &Chain) -> Result<Vec<ImageInfo>, InfoError> {
    engine::block_on(async {
        let mut found = Vec::new();
        for layer in chain.layers() {
            found.push(info_of(layer).await?);
        }
        Ok(found)
    })?
}

async fn info_of(layer: &Layer) -> Result<ImageInfo, InfoError> {
    let name = || layer.name.clone();
    let failed = |source| InfoError::File { name: name(), source };
    let metadata = layer.file.metadata().map_err(failed)?;
    let file_size_bytes = length(&layer.file).map_err(failed)?;
    let mut info = ImageInfo {
        name: name(),
        format: layer.format,
        virtual_size_bytes: file_size_bytes,
        file_size_bytes,
        allocated_bytes: metadata.blocks() * STAT_BLOCK_BYTES,
        qcow2: None,
    };
    if layer.format == DiskFormat::Qcow2 {
        let options = OpenOptions {
            locking: Locking::Look,
            ..OpenOptions::default()
        };
        let disk = open::file(&layer.file, &layer.name, &options, Role::Container)?;
        let io = disk
            .open_queue()
            .map_err(|source| InfoError::Read { name: name(), source })?;
        let told = ops::info(&*io).await;
        let told = told.map_err(|source| InfoError::Qcow2 { name: name(), source })?;
        info.virtual_size_bytes = told.virtual_size;
        info.qcow2 = Some(told);
    }
    Ok(info)
}

/// The position of the end is the size of files and block devices alike.
fn length(file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut &*file, io::SeekFrom::End(0))
}
