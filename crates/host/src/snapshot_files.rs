//! The directories of snapshots.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use api_types::Vm;
use spec::SnapshotId;

use crate::context::{Context, UNFINISHED};
use crate::failure::Failure;
use crate::machine;
use crate::registry::SnapshotRow;
use crate::volume_store::failure;

/// Bytes of a block of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Directory of a snapshot.
pub(crate) fn directory(context: &Context, id: SnapshotId) -> PathBuf {
    context.saved_dir().join(id.to_string())
}

fn mark_of(context: &Context, id: SnapshotId) -> PathBuf {
    context.saved_dir().join(format!("{id}.{UNFINISHED}"))
}

/// From now on the directory may be removed if there is no record. Blocks.
pub(crate) fn mark(context: &Context, id: SnapshotId) -> Result<(), Failure> {
    let mark = mark_of(context, id);
    fs::write(&mark, []).map_err(|error| failure("be made", &mark, &error))
}

/// The record says that it is ready. Blocks.
pub(crate) fn unmark(context: &Context, id: SnapshotId) {
    let mark = mark_of(context, id);
    if let Err(error) = fs::remove_file(&mark) {
        tracing::warn!(path = %mark.display(), %error, "the mark of a snapshot remains until the next start");
    }
}

/// Makes the directory. Blocks.
pub(crate) fn make(context: &Context, id: SnapshotId) -> Result<File, Failure> {
    let directory = directory(context, id);
    let made = DirBuilder::new().mode(0o700).create(&directory);
    made.and_then(|()| File::open(&directory))
        .map_err(|error| failure("be made", &directory, &error))
}

/// Puts the machine's disk, as it was frozen, and what it boots with beside its memory. Blocks.
pub(crate) fn link(context: &Context, id: SnapshotId, vm: &Vm) -> Result<(), Failure> {
    let directory = directory(context, id);
    let linked = machine::share_frozen(&context.vm_dir(vm.id), &directory)
        .and_then(|()| share_boot(&context.boot_dir(vm.id), &directory.join("boot")))
        .and_then(|()| File::open(&directory)?.sync_all());
    linked.map_err(|error| failure("be filled", &directory, &error))
}

/// Links what a machine boots with, if it keeps that. Blocks.
pub(crate) fn share_boot(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in entries {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    File::open(to)?.sync_all()
}

/// Removes the directory, then the mark. What can not be removed is when the daemon starts next. Blocks.
pub(crate) fn remove(context: &Context, id: SnapshotId) {
    let directory = directory(context, id);
    let removed = match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_file(mark_of(context, id)),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %directory.display(), %error, "files of a snapshot remain until the daemon starts next");
    }
}

/// What the files take, bytes. Blocks shortly.
pub(crate) fn usage_bytes(context: &Context, id: SnapshotId) -> u64 {
    let directory = directory(context, id);
    let files = [directory.join("boot"), directory].into_iter();
    let files = files.flat_map(fs::read_dir).flatten().flatten();
    let sizes = files.filter_map(|entry| entry.metadata().ok());
    let sizes = sizes.filter(fs::Metadata::is_file);
    sizes.map(|metadata| metadata.blocks() * BLOCK_BYTES).sum()
}

/// What has been written of a machine's memory so far, bytes.
pub(crate) fn written_bytes(context: &Context, id: SnapshotId) -> u64 {
    let memory = fs::metadata(directory(context, id).join("memory"));
    memory.map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES)
}

/// Removes what is left of snapshots whose making or removal was cut off; `known` are those that are ready. Blocks.
pub(crate) fn clear(context: &Context, known: &[SnapshotRow]) -> io::Result<()> {
    for entry in fs::read_dir(context.saved_dir())? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let (id, marked) = match name.split_once('.') {
            Some((id, UNFINISHED)) => (id, true),
            _ => (name, false),
        };
        let Ok(id) = id.parse::<SnapshotId>() else { continue };
        match (marked, known.iter().any(|row| row.id() == id)) {
            (true, true) => unmark(context, id),
            (true, false) => remove(context, id),
            (false, true) => {}
            (false, false) if mark_of(context, id).exists() => remove(context, id),
            (false, false) => tracing::warn!(
                path = %directory(context, id).display(),
                "files of a snapshot that no record knows are kept: put karat.db back that knows it, or remove the directory"
            ),
        }
    }
    Ok(())
}
