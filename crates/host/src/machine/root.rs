//! The files of a machine's own disk, and how what it holds is frozen under a guest that runs.
//!
//! ```text
//!   root.FORMAT          what is written
//!   next-ID.qcow2        the overlay in which a process was asked to go on, for snapshot ID
//!   frozen-ID.FORMAT     what was written until then; nobody writes it again, and snapshots and machines share it by hard links
//! ```
//! The name `frozen-ID` is given to what is written before the process is asked, and `next-ID` becomes `root` afterwards. A daemon
//! that dies in between leaves it to the overlay to tell what happened: its header is written at once, and before the guest writes
//! there. Where it is an image it is the top, and shows the old one until then; where it is none, nothing was changed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use api_types::{ErrorCode, Vm};
use control::DiskLayer;
use disk_image::{Chain, CreateOptions, Layer};
use rustix::fs::FlockOperation;
use spec::{DiskFormat, SnapshotId, VmId};

use super::image_lock::lock;
use crate::context::Context;
use crate::failure::{Failure, chain};
use crate::volume_store::{failure, trouble};

const FROZEN: &str = "frozen-";
const NEXT: &str = "next-";
/// How every qcow2 image begins (qcow2 specification, "Header").
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Frozen files of a machine at most. Each one costs reads of what is at the bottom a look.
pub(crate) const FROZEN_MAX: usize = 16;

/// An overlay that a process can be asked to go on in.
pub(crate) struct Overlay {
    /// Empty, open and locked.
    pub(crate) file: std::os::fd::OwnedFd,
    /// What it will be.
    pub(crate) layer: DiskLayer,
    /// What its header is to name.
    pub(crate) backing: String,
}

/// Whether this is a file that nobody writes.
fn is_frozen(path: &Path) -> bool {
    let id = path.file_stem().and_then(|name| name.to_str()?.strip_prefix(FROZEN));
    id.is_some_and(|id| id.parse::<SnapshotId>().is_ok())
}

/// The file of a machine's own disk, and its format. Blocks shortly.
pub(crate) fn root_file(context: &Context, vm: &Vm) -> (PathBuf, DiskFormat) {
    let overlay = context.root_disk(vm.id, DiskFormat::Qcow2);
    // A raw one becomes the bottom of an overlay; the record follows.
    let told = vm.status.root_disk.as_ref().map_or(DiskFormat::Raw, |root| root.format);
    if told == DiskFormat::Qcow2 || overlay.exists() {
        return (overlay, DiskFormat::Qcow2);
    }
    (context.root_disk(vm.id, told), told)
}

/// The frozen files in a directory, in no order. Blocks shortly.
pub(crate) fn frozen_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    with_prefix(directory, FROZEN)
}

fn with_prefix(directory: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Takes over, or removes, the overlays that an earlier daemon left. Blocks.
pub(crate) fn settle_root(context: &Context, id: VmId) -> Result<(), Failure> {
    let directory = context.vm_dir(id);
    let left = with_prefix(&directory, NEXT).map_err(|error| failure("be read", &directory, &error))?;
    for next in left {
        settle(context, id, &next).map_err(|error| failure("be settled", &next, &error))?;
    }
    Ok(())
}

fn settle(context: &Context, id: VmId, next: &Path) -> io::Result<()> {
    if is_qcow2(next)? {
        return take_over(context, id, next);
    }
    // Whoever has it open, or a message on its way to one, has it locked.
    rustix::fs::flock(File::open(next)?, FlockOperation::NonBlockingLockExclusive)?;
    if is_qcow2(next)? {
        return take_over(context, id, next);
    }
    if let Some(snapshot) = snapshot_of(next) {
        drop_frozen(&context.vm_dir(id), snapshot)?;
    }
    fs::remove_file(next)
}

fn snapshot_of(next: &Path) -> Option<SnapshotId> {
    next.file_stem()?.to_str()?.strip_prefix(NEXT)?.parse().ok()
}

/// From now on the overlay is the machine's disk. Blocks.
fn take_over(context: &Context, id: VmId, next: &Path) -> io::Result<()> {
    fs::rename(next, context.root_disk(id, DiskFormat::Qcow2))?;
    // It goes on as a frozen file.
    gone(fs::remove_file(context.root_disk(id, DiskFormat::Raw)))?;
    File::open(context.vm_dir(id))?.sync_all()
}

fn drop_frozen(directory: &Path, snapshot: SnapshotId) -> io::Result<()> {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        gone(fs::remove_file(directory.join(frozen_name(snapshot, format))))?;
    }
    Ok(())
}

fn frozen_name(snapshot: SnapshotId, format: DiskFormat) -> String {
    format!("{FROZEN}{snapshot}.{}", format.suffix())
}

fn next_file(context: &Context, id: VmId, snapshot: SnapshotId) -> PathBuf {
    context.vm_dir(id).join(format!("{NEXT}{snapshot}.qcow2"))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_qcow2(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut start = [0; QCOW2_MAGIC.len()];
    match File::open(path)?.read_exact_at(&mut start, 0) {
        Ok(()) => Ok(start == QCOW2_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives what the machine writes its frozen name, and makes the file of an overlay. Blocks.
pub(crate) fn begin_freeze(context: &Context, vm: &Vm, snapshot: SnapshotId) -> Result<Overlay, Failure> {
    let directory = context.vm_dir(vm.id);
    settle_root(context, vm.id)?;
    let count = frozen_files(&directory).map_err(|error| failure("be read", &directory, &error))?;
    if count.len() >= FROZEN_MAX {
        let name = &vm.spec.name;
        let text = format!(
            "the root disk of machine {name} consists of {FROZEN_MAX} files of snapshots already: karat flatten {name} makes one of them"
        );
        return Err(Failure::new(ErrorCode::WrongState, text));
    }
    let (root, format) = root_file(context, vm);
    let backing = frozen_name(snapshot, format);
    let next = next_file(context, vm.id, snapshot);
    let made = fs::hard_link(&root, directory.join(&backing))
        .and_then(|()| File::options().read(true).write(true).create_new(true).open(&next))
        .and_then(|file| File::open(&directory)?.sync_all().map(|()| file));
    let file = made.map_err(|error| {
        end_freeze(context, vm.id, snapshot, false);
        failure("be made", &next, &error)
    })?;
    Ok(Overlay {
        file: lock(file, &next, false)?,
        layer: DiskLayer {
            name: context.root_disk(vm.id, DiskFormat::Qcow2).display().to_string(),
            format: DiskFormat::Qcow2,
            writable: true,
            data_file: None,
        },
        backing,
    })
}

/// The process goes on in the overlay, or was not asked or refused. What can not be done now is done before the next start. Blocks.
pub(crate) fn end_freeze(context: &Context, id: VmId, snapshot: SnapshotId, done: bool) {
    let next = next_file(context, id, snapshot);
    let ended = if done {
        take_over(context, id, &next)
    } else {
        gone(fs::remove_file(&next)).and_then(|()| drop_frozen(&context.vm_dir(id), snapshot))
    };
    if let Err(error) = ended {
        tracing::warn!(path = %next.display(), %error, "the root disk of a machine is settled at its next start");
    }
}

/// Links all frozen files of one directory into another one. Blocks.
pub(crate) fn share_frozen(from: &Path, to: &Path) -> io::Result<()> {
    for file in frozen_files(from)? {
        if let Some(name) = file.file_name() {
            fs::hard_link(&file, to.join(name))?;
        }
    }
    Ok(())
}

/// Removes the frozen files that a machine's disk does not read from any more. Nobody freezes it meanwhile. Blocks.
pub(crate) fn drop_unused_frozen(context: &Context, vm: &Vm) {
    let directory = context.vm_dir(vm.id);
    let used = match used_files(&directory, root_file(context, vm)) {
        Ok(used) => used,
        Err(error) => {
            tracing::warn!(path = %directory.display(), error = chain(&error), "which files a disk reads from is not known");
            return;
        }
    };
    let files = frozen_files(&directory).unwrap_or_default();
    for file in files.into_iter().filter(|file| !used.contains(file)) {
        if let Err(error) = fs::remove_file(&file) {
            tracing::warn!(path = %file.display(), %error, "a file that a disk does not need can not be removed");
        }
    }
}

/// The frozen files that a disk reads from, as the headers say.
fn used_files(directory: &Path, root: (PathBuf, DiskFormat)) -> Result<Vec<PathBuf>, disk_image::InfoError> {
    let mut used = Vec::new();
    let (mut path, mut format) = root;
    loop {
        let opened = File::open(&path).map_err(|source| disk_image::InfoError::File {
            name: path.display().to_string(),
            source,
        });
        let layer = Layer {
            name: path.display().to_string(),
            format,
            file: opened?,
            writable: false,
            data_file: None,
        };
        let info = disk_image::info(&Chain::new(layer, Vec::new()))?;
        let qcow2 = info.into_iter().next().and_then(|info| info.qcow2);
        let Some(backing) = qcow2.and_then(|qcow2| qcow2.backing_filename) else {
            return Ok(used);
        };
        path = directory.join(backing);
        if !is_frozen(&path) || used.contains(&path) {
            return Ok(used);
        }
        format = match path.extension().is_some_and(|suffix| suffix == "raw") {
            true => DiskFormat::Raw,
            false => DiskFormat::Qcow2,
        };
        used.push(path.clone());
    }
}

/// The file that was frozen for a snapshot, and its format.
fn frozen_for(directory: &Path, snapshot: SnapshotId) -> Option<(PathBuf, DiskFormat)> {
    let formats = [DiskFormat::Qcow2, DiskFormat::Raw].into_iter();
    let mut files = formats.map(|format| (directory.join(frozen_name(snapshot, format)), format));
    files.find(|(file, _)| file.exists())
}

/// Whether a machine's disk reads from what was frozen for snapshots. Blocks shortly.
pub(crate) fn has_frozen(context: &Context, vm: &Vm) -> bool {
    frozen_files(&context.vm_dir(vm.id)).is_ok_and(|files| !files.is_empty())
}

/// Makes the disk of a machine that goes on from a snapshot, whose frozen files are in its directory already. Blocks.
pub(crate) fn make_root_over(context: &Context, id: VmId, snapshot: SnapshotId) -> Result<(), Failure> {
    let directory = context.vm_dir(id);
    let root = context.root_disk(id, DiskFormat::Qcow2);
    let made = |error: &io::Error| failure("be made", &root, error);
    let (below, format) = frozen_for(&directory, snapshot)
        .ok_or_else(|| Failure::new(ErrorCode::Internal, "the snapshot has lost the disk of its machine"))?;
    let layer = Layer {
        name: below.display().to_string(),
        format,
        file: File::open(&below).map_err(|error| made(&error))?,
        writable: false,
        data_file: None,
    };
    let what = "the disk of the snapshot can not be gone on from";
    let size_bytes = size_of(layer).map_err(|error| trouble(what, &error))?;
    let file = File::options().read(true).write(true).create_new(true).open(&root);
    let file = file.map_err(|error| made(&error))?;
    let options = CreateOptions::overlay(size_bytes, frozen_name(snapshot, format), format);
    disk_image::create(&file, None, &options).map_err(|error| trouble(what, &error))?;
    file.sync_all().map_err(|error| made(&error))
}

/// By its own header alone: what is below has the same size or is cut off.
fn size_of(layer: Layer) -> Result<u64, disk_image::InfoError> {
    let info = disk_image::info(&Chain::new(layer, Vec::new()))?;
    Ok(info.first().map_or(0, |info| info.virtual_size_bytes))
}
