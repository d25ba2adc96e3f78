//! What became of work that a machine process did on a volume, as the files tell.
//!
//! The machine process is the first to be asked. When it is gone, or knows of nothing, its files say which image is the disk:
//!
//! | work | it is done when | why that is right |
//! |---|---|---|
//! | snapshot | the overlay is an image | it is one before the guest writes there, and shows the old top until then |
//! | stream | the top names no backing image | that is taken out last, and the header decides what is opened |
//! | move | the note of the pivot is there | it is written while both are the same, durable and not in use |
//! | mirror | never | the daemon alone declares a copy whole |
//!
//! Nobody decides while a file is in use: a process, or a message on its way to one, holds a lock on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::PIVOTED;
use spec::{DiskFormat, VolumeId};

use super::disk;
use super::files::{self, Files};
use crate::context::Context;
use crate::failure::Failure;
use crate::registry::{LayerFile, Task, VolumeRecord};

/// How often a file that is in use is looked at before a start is refused.
const LOOKS: u32 = 10;
/// How long to wait in between.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Whether what `task` was for has happened; `None` while somebody has the file in use that would tell. Blocks.
pub(crate) fn settled(context: &Context, record: &VolumeRecord, task: Task) -> Result<Option<bool>, Failure> {
    let files = Files::of(context, record.id);
    let (path, format) = match task {
        Task::Snapshot { overlay: file } | Task::Move { target: file } => (files.layer(file), file.format),
        Task::Stream => (files.layer(record.top()), record.top().format),
        Task::Mirror => (files.part(), DiskFormat::Raw),
        _ => return Ok(Some(false)),
    };
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(false)),
        Err(error) => return Err(files::failure("be opened", &path, &error)),
    };
    let locked = files::lock(&file, true);
    if !locked.map_err(|error| files::failure("be locked", &path, &error))? {
        return Ok(None);
    }
    let done = match task {
        // Its first sector is written last, and at once.
        Task::Snapshot { .. } => disk::is_qcow2(&file).map_err(|error| files::failure("be read", &path, &error))?,
        Task::Stream => disk::backing(&file, format)?.is_none(),
        Task::Move { target } => is_noted(&files.note(target))?,
        _ => false,
    };
    Ok(Some(done))
}

fn is_noted(path: &Path) -> Result<bool, Failure> {
    match std::fs::read(path) {
        Ok(note) => Ok(note == PIVOTED),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(files::failure("be read", path, &error)),
    }
}

/// The record as it will be once its unfinished work is settled, for a machine that starts before that. Blocks.
pub(crate) fn as_settled(context: &Context, mut record: VolumeRecord) -> Result<VolumeRecord, Failure> {
    let Some(job) = record.job.filter(|job| job.task.is_live()) else {
        return Ok(record);
    };
    let Some(done) = settled_soon(context, &record, job.task)? else {
        let text = format!(
            "operation {} on volume {} is not over yet; try again when it is",
            job.operation,
            record.name()
        );
        return Err(Failure::new(api_types::ErrorCode::InUse, text));
    };
    record.settle(job.task, done);
    Ok(record)
}

/// The daemon itself has the file open for a moment when it looks.
fn settled_soon(context: &Context, record: &VolumeRecord, task: Task) -> Result<Option<bool>, Failure> {
    for _ in 1..LOOKS {
        if let Some(done) = settled(context, record, task)? {
            return Ok(Some(done));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    settled(context, record, task)
}

/// An open file of a volume that a machine process will work on.
pub(crate) struct NewFile {
    /// What messages call it.
    pub(crate) path: PathBuf,
    /// Open, and locked for writing.
    pub(crate) file: File,
}

/// An empty file for `layer`. Blocks.
pub(crate) fn empty_layer(context: &Context, id: VolumeId, layer: LayerFile) -> Result<NewFile, Failure> {
    let files = Files::of(context, id);
    let path = files.layer(layer);
    locked(files.add(&path)?, path)
}

/// An image of a disk of `size_bytes`, reading as zeroes, for `layer`, and the file for the note of the pivot. Blocks.
pub(crate) fn new_layer(
    context: &Context,
    id: VolumeId,
    layer: LayerFile,
    size_bytes: u64,
) -> Result<(NewFile, File), Failure> {
    let files = Files::of(context, id);
    let note = files.add(&files.note(layer))?;
    let new = empty_layer(context, id, layer)?;
    disk::plain(&new.file, layer.format, size_bytes)?;
    Ok((new, note))
}

/// The same for a new volume in the making. Blocks.
pub(crate) fn new_part(context: &Context, record: &VolumeRecord, size_bytes: u64) -> Result<NewFile, Failure> {
    let files = Files::of(context, record.id);
    let new = locked(files.begin()?, files.part())?;
    disk::plain(&new.file, record.top().format, size_bytes)?;
    Ok(new)
}

fn locked(file: File, path: PathBuf) -> Result<NewFile, Failure> {
    match files::lock(&file, true) {
        Ok(true) => Ok(NewFile { path, file }),
        Ok(false) => {
            let text = format!("{} is in use by another program", path.display());
            Err(Failure::new(api_types::ErrorCode::InUse, text))
        }
        Err(error) => Err(files::failure("be locked", &path, &error)),
    }
}
