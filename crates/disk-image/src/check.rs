//! Whether an image is sound, and making it so.

use std::fs::File;

use disk::Access;
use disk_qcow2::ops::{self, CheckReport, Limits, Repair};
use disk_raw::Role;
use spec::DiskFormat;

use crate::engine::{self, EngineError};
use crate::open::{self, OpenError, OpenOptions};

/// Why an image could not be checked, or not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file.
    #[error("the image can not be opened")]
    Open(#[from] OpenError),
    /// A queue of it.
    #[error("the image can not be read")]
    Read(#[from] disk::DiskError),
    /// It can not be checked.
    #[error("the image can not be checked")]
    Check(#[from] ops::CheckError),
    /// It can not be repaired.
    #[error("the image can not be repaired")]
    Repair(#[from] ops::RepairError),
    /// No executor.
    #[error("the image can not be worked on")]
    Engine(#[from] EngineError),
}

/// Checks the image in `file`, and repairs it if told to (the file is open for writing then). Images below are not looked at. About
/// a raw image there is nothing to find. Blocks.
///
/// # Errors
/// It is in use, can not be read, or its header is refused.
pub fn check(file: &File, format: DiskFormat, repair: Option<Repair>) -> Result<CheckReport, CheckError> {
    if format == DiskFormat::Raw {
        return Ok(CheckReport::default());
    }
    let access = match repair {
        Some(_) => Access::ReadWrite,
        None => Access::ReadOnly,
    };
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    let disk = open::file(file, "image", &options, Role::Container)?;
    engine::block_on(async {
        let io = disk.open_queue()?;
        Ok(match repair {
            None => ops::check(&*io, Limits::default()).await?,
            Some(repair) => ops::repair(&*io, repair, Limits::default()).await?,
        })
    })?
}
