//! Whether an image is sound, and making it so.

use std::fs::File;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use disk::Access;
use disk_qcow2::ops::{self, CheckReport, Limits, Repair};
use disk_raw::Role;
use spec::DiskFormat;

use crate::engine::{self, EngineError};
use crate::open::{self, OpenError, OpenOptions};
use crate::watch::Watch;
use crate::watched_io::WatchedIo;

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
    /// Somebody wanted it to stop.
    #[error("the check was given up on request")]
    Stopped,
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
    check_watched(file, format, repair, &())
}

/// [`check`] that tells how many bytes of tables it has read, of those in the file, and gives up when it is told to. A repair that
/// was given up is one that was cut off: what it did not come to is as it was.
///
/// # Errors
/// As for [`check`]; and [`CheckError::Stopped`].
pub fn check_watched(
    file: &File,
    format: DiskFormat,
    repair: Option<Repair>,
    watch: &dyn Watch,
) -> Result<CheckReport, CheckError> {
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
        let io = WatchedIo::new(disk.open_queue()?, watch);
        let mut work = pin!(async {
            Ok::<_, CheckError>(match repair {
                None => ops::check(&io, Limits::default()).await?,
                Some(repair) => ops::repair(&io, repair, Limits::default()).await?,
            })
        });
        poll_fn(|context| match watch.is_stopped() {
            true => Poll::Ready(Err(CheckError::Stopped)),
            false => work.as_mut().poll(context),
        })
        .await
    })?
}
