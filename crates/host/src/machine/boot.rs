//! What a machine is booted with where its specification names nothing: parts of its image, or copies of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::Vm;
use disk_image::Watch;
use images::{BootParts, ImageDigest, Phase, Progress};
use rustix::fs::{CWD, RenameFlags};
use spec::VmId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::disks::{self, stands_alone};
use super::files_error::FilesError;
use crate::context::Context;
use crate::failure::Failure;
use crate::placing::root_store;

/// After how many bytes the room that is left is looked at.
const CHECK_BYTES: u64 = 64 << 20;
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const CMDLINE: &str = "cmdline";

/// Kernel, initrd and command line that come with the machine's disk. Blocks shortly.
pub(crate) fn boot_parts(context: &Context, vm: &Vm) -> Result<BootParts, FilesError> {
    let directory = context.boot_dir(vm.id);
    let kept = BootParts {
        kernel: own(&directory.join(KERNEL))?,
        initrd: own(&directory.join(INITRD))?,
        cmdline: read(&directory.join(CMDLINE))?,
    };
    if stands_alone(vm) {
        return Ok(kept);
    }
    let Some(Ok(digest)) = vm.image_digest.as_deref().map(str::parse::<ImageDigest>) else {
        return Ok(BootParts::default());
    };
    let store = context
        .store_behind(root_store(&vm.status))
        .map_err(FilesError::Image)?;
    let image = store.get(&digest).map_err(FilesError::Image)?;
    if kept.kernel.is_some() {
        return Ok(BootParts {
            cmdline: kept.cmdline.or(image.cmdline),
            ..kept
        });
    }
    let kernel = image.kernel.as_ref().map(|_| store.open_kernel(&digest)).transpose();
    let initrd = image.initrd.as_ref().map(|_| store.open_initrd(&digest)).transpose();
    Ok(BootParts {
        kernel: kernel.map_err(FilesError::Image)?,
        initrd: initrd.map_err(FilesError::Image)?,
        cmdline: image.cmdline,
    })
}

/// Copies what the machine's image brings beside its disk, for when that stands alone. Blocks.
pub(crate) fn keep_boot(context: &Context, vm: &Vm) -> Result<(), Failure> {
    let parts = boot_parts(context, vm)?;
    put_boot(context, vm.id, parts)
}

/// Keeps what a machine is booted with beside its disk. Blocks.
pub(crate) fn put_boot(context: &Context, id: VmId, parts: BootParts) -> Result<(), Failure> {
    let directory = context.boot_dir(id);
    let half = directory.with_extension("part");
    let kept = clear(&half).and_then(|()| {
        fs::create_dir(&half)?;
        for (name, part) in [(KERNEL, parts.kernel), (INITRD, parts.initrd)] {
            let Some(mut part) = part else { continue };
            let mut copy = File::create_new(half.join(name))?;
            io::copy(&mut part, &mut copy)?;
            copy.sync_all()?;
        }
        if let Some(cmdline) = parts.cmdline {
            fs::write(half.join(CMDLINE), cmdline)?;
            File::open(half.join(CMDLINE))?.sync_all()?;
        }
        File::open(&half)?.sync_all()?;
        // In one step: a machine may have no other kernel than the one that is kept.
        if directory.exists() {
            rustix::fs::renameat_with(CWD, &half, CWD, &directory, RenameFlags::EXCHANGE)?;
            clear(&half)?;
        } else {
            rustix::fs::renameat(CWD, &half, CWD, &directory)?;
        }
        File::open(context.vm_dir(id))?.sync_all()
    });
    kept.map_err(|error| crate::volume_store::failure("be made", &directory, &error))
}

/// Copies into the root disk of a machine that has no process what that reads from its image. Blocks.
pub(crate) fn rebase_root(
    context: &Context,
    vm: &Vm,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    super::root::settle_root(context, vm.id)?;
    let chain = disks::root(context, vm, 1)?;
    super::read::lock_all(&chain, true)?;
    if chain.below().is_empty() {
        return Ok(());
    }
    let watching = Watching {
        context,
        progress,
        stop,
        checked_bytes: AtomicU64::new(0),
        lack: Mutex::new(None),
    };
    let rebased = disk_image::rebase(&chain, None, &watching);
    if let Some(failure) = watching.lack.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    rebased.map_err(|error| crate::volume_store::trouble("the root disk can not be made to stand alone", &error))
}

struct Watching<'a> {
    context: &'a Context,
    progress: &'a watch::Sender<Progress>,
    stop: &'a CancellationToken,
    /// How far it had come when space was looked at.
    checked_bytes: AtomicU64,
    /// There is no more than others need.
    lack: Mutex<Option<Failure>>,
}

impl Watching<'_> {
    fn lack(&self) -> MutexGuard<'_, Option<Failure>> {
        self.lack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Watching<'_> {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        let phase = Phase::Copying;
        self.progress.send_replace(Progress {
            phase,
            done_bytes,
            total_bytes,
        });
        if done_bytes >= self.checked_bytes.load(Ordering::Relaxed).saturating_add(CHECK_BYTES) {
            self.checked_bytes.store(done_bytes, Ordering::Relaxed);
            if let Err(failure) = self.context.check_space(0) {
                *self.lack() = Some(failure);
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled() || self.lack().is_some()
    }
}

fn own(path: &Path) -> Result<Option<File>, FilesError> {
    there(path, File::open(path))
}

fn read(path: &Path) -> Result<Option<String>, FilesError> {
    there(path, fs::read_to_string(path))
}

fn there<T>(path: &Path, read: io::Result<T>) -> Result<Option<T>, FilesError> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|source| FilesError::Own {
            path: PathBuf::from(path),
            source,
        }),
    }
}

fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
