//! Memory that a machine goes on from when it starts next, rather than being booted.
//!
//! ```text
//!   saved/memory, saved/state    as `karat-vmm` saved them: hard links to the files of a snapshot
//!   saved/eager                  memory is read and compared, not mapped
//! ```
//! It fits the machine's disk only as long as the guest has not run: the directory is put away, durably, before it does.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use control::FdRole;
use spec::VmId;

use super::files_error::FilesError;
use crate::context::Context;

/// Files of a saved machine.
const PARTS: [&str; 2] = ["memory", "state"];
const EAGER: &str = "eager";

/// How memory comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It is mapped.
    Mapped,
    /// It is read and compared with its checksums.
    Read,
}

/// Where it is.
pub(super) fn directory(context: &Context, id: VmId) -> PathBuf {
    context.vm_dir(id).join("saved")
}

/// Whether the machine has not gone on from its memory yet.
pub(super) fn is_due(context: &Context, id: VmId) -> bool {
    directory(context, id).is_dir()
}

/// Has a machine, which has no process, go on from what is in `saved` when it starts. Blocks.
pub(crate) fn keep_memory(context: &Context, id: VmId, saved: &Path, memory: Memory) -> io::Result<()> {
    let directory = directory(context, id);
    let half = directory.with_extension("part");
    fs::create_dir(&half)?;
    for part in PARTS {
        fs::hard_link(saved.join(part), half.join(part))?;
    }
    if memory == Memory::Read {
        File::create_new(half.join(EAGER))?;
    }
    File::open(&half)?.sync_all()?;
    fs::rename(&half, &directory)?;
    File::open(context.vm_dir(id))?.sync_all()
}

/// The directory for a process, if the machine goes on from one.
pub(super) fn open(context: &Context, id: VmId) -> Result<Option<(FdRole, OwnedFd)>, FilesError> {
    let path = directory(context, id);
    let lazy = !path.join(EAGER).exists();
    match File::open(&path) {
        Ok(directory) => Ok(Some((FdRole::SavedDirectory { lazy, copy: true }, directory.into()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FilesError::Own { path, source }),
    }
}

/// Puts it away: the machine is booted when it starts next.
pub(super) async fn used_up(context: &Context, id: VmId) -> io::Result<()> {
    let (path, parent) = (directory(context, id), context.vm_dir(id));
    let used = path.with_extension("used");
    let moved = tokio::task::spawn_blocking(move || {
        fs::rename(&path, &used)?;
        File::open(parent)?.sync_all()?;
        // The process has its files open.
        if let Err(error) = fs::remove_dir_all(&used) {
            tracing::warn!(path = %used.display(), %error, "memory that was gone on from remains with its machine");
        }
        Ok(())
    });
    moved.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
