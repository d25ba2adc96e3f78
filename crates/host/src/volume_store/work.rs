//! The work itself, on a thread that may block. Each piece can be cut off anywhere and begun anew.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use api_types::{ErrorCode, VolumeCheck, VolumeMeasure, VolumeMeasureRequest, VolumeRepair, VolumeSource};
use images::{ImageDigest, Store};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use spec::DiskFormat;

use super::disk::{self, Form, Source, Work};
use super::files::{self, Files};
use super::meter::Meter;
use super::room::Room;
use super::wish::{SECTOR_BYTES, SIZE_MAX};
use crate::context::Context;
use crate::failure::Failure;
use crate::failure::store_code;
use crate::registry::{Task, VolumeRecord};

/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// What a volume is after the work.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) format: DiskFormat,
    pub(crate) size_bytes: u64,
    pub(crate) check: Option<VolumeCheck>,
    /// What the operation comes to, where that is more than the volume's name.
    pub(crate) told: Option<String>,
}

/// Does what `task` says.
pub(crate) fn carry_out(
    context: &Context,
    record: &VolumeRecord,
    task: Task,
    meter: &Meter,
) -> Result<Outcome, Failure> {
    meter.check()?;
    match task {
        Task::Create => create(context, record, meter),
        Task::Finish => take_over(context, record, meter),
        Task::Resize { size_bytes } => resize(context, record, size_bytes),
        Task::Check { repair } => check(context, record, repair, meter),
        Task::Rebase => rebase(context, record, meter),
        Task::Commit => commit(context, record, meter),
        Task::Snapshot { .. } | Task::Stream | Task::Move { .. } | Task::Mirror => Err(Failure::new(
            ErrorCode::Internal,
            "this is the work of a machine process",
        )),
    }
}

fn create(context: &Context, record: &VolumeRecord, meter: &Meter) -> Result<Outcome, Failure> {
    let files = Files::of(context, record.id);
    let mut form = form(record)?;
    let has_room = |bytes| context.check_space(bytes);
    let room = Room::new(&has_room);
    let work = Work { meter, room };
    let file = files.begin()?;
    match &record.wish.source {
        VolumeSource::Blank {} => disk::blank(&file, &form, None, &work)?,
        VolumeSource::Image { .. } => {
            let digest = image_of(record)?;
            if record.shares_image() {
                let store = store_of(context, record)?;
                let backing = (backing_name(context, &store, &digest), sealed(&store, &digest)?.format);
                disk::blank(&file, &form, Some(&backing), &work)?;
            } else {
                disk::copy(vec![sealed(&store_of(context, record)?, &digest)?], &file, &form, &work)?;
            }
        }
        VolumeSource::Volume { volume } => {
            let origin = context.registry.change_now(|change| super::find(change, volume))?;
            if Some(origin.id) != record.copied_from {
                let text = format!("volume {volume} is not the one that was to be copied any more");
                return Err(Failure::new(ErrorCode::NotFound, text));
            }
            let layers = layers(context, &origin, 0)?;
            if let Some(top) = layers.first() {
                // What its record says may be old: it may have grown under a machine that could not tell.
                form.size_bytes = form.size_bytes.max(disk::size(&top.file, top.format)?);
            }
            disk::copy(layers, &file, &form, &work)?;
        }
        VolumeSource::Upload { .. } => {
            let text = "a volume that is uploaded is not filled from elsewhere";
            return Err(Failure::new(ErrorCode::Internal, text));
        }
    }
    meter.begin("seal", None);
    files.finish(&file, form.format)?;
    Ok(Outcome {
        format: form.format,
        size_bytes: form.size_bytes,
        check: None,
        told: None,
    })
}

/// The files a volume's contents are in, top first, locked against others; the first `written` of them to be written.
fn layers(context: &Context, record: &VolumeRecord, written: usize) -> Result<Vec<Source>, Failure> {
    let mut layers = Vec::new();
    for (place, layer) in record.files().into_iter().enumerate() {
        let file = files::open_layer(context, record, layer, place < written)?;
        let format = layer.format;
        // What an image does not refer to any more must not show through it, whatever the record still has.
        let alone = disk::backing(&file, format)?.is_none();
        layers.push(Source { file, format });
        if alone {
            return Ok(layers);
        }
    }
    if record.shares_image() {
        layers.push(sealed(&store_of(context, record)?, &image_of(record)?)?);
    }
    Ok(layers)
}

/// The store with the image that a volume was made from.
pub(super) fn store_of(context: &Context, record: &VolumeRecord) -> Result<Store, Failure> {
    let store = context.store_behind(record.image_store.as_deref());
    store.map_err(|error| Failure::of(store_code(&error), &error))
}

/// The disk of a golden image.
fn sealed(store: &Store, digest: &ImageDigest) -> Result<Source, Failure> {
    let opened = store.get(digest).and_then(|image| {
        let file = store.open_disk(digest)?;
        let format = super::sealed_format(&image);
        Ok(Source { file, format })
    });
    opened.map_err(|error| Failure::of(store_code(&error), &error))
}

fn image_of(record: &VolumeRecord) -> Result<ImageDigest, Failure> {
    let digest = record.image.as_deref().and_then(|digest| digest.parse().ok());
    digest.ok_or_else(|| Failure::new(ErrorCode::Internal, "the record of the volume names no image"))
}

fn form(record: &VolumeRecord) -> Result<Form, Failure> {
    let (Some(format), Some(size_bytes)) = (record.format, record.size_bytes) else {
        let text = "the record of the volume has no format or size";
        return Err(Failure::new(ErrorCode::Internal, text));
    };
    Ok(Form {
        format,
        size_bytes,
        preallocation: record.wish.preallocation,
        cluster_bytes: record.wish.cluster_size.map(spec::ByteSize::bytes),
        compressed: record.wish.compressed,
    })
}

/// Makes a volume of what was uploaded: as it is where it has the form that was asked for, else by copying.
fn take_over(context: &Context, record: &VolumeRecord, meter: &Meter) -> Result<Outcome, Failure> {
    let files = Files::of(context, record.id);
    let file = match open_taken(&files, record, meter)? {
        Taken::Upload(file) => file,
        // Cut off between taking its place and the note of it.
        Taken::Placed(file, format) => return outcome(record, &file, format),
    };
    let path = files.taken();
    meter.begin("judge", None);
    let (format, size_bytes) = disk::judge(&file)?;
    let most = context.config.image_max_bytes.min(SIZE_MAX);
    if size_bytes > most {
        let text = format!("what was uploaded is a disk of {size_bytes} bytes, and {most} are the most (image_max)");
        return Err(Failure::new(ErrorCode::DiskRefused, text));
    }
    let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
    if format == DiskFormat::Raw {
        // The last sector is whole.
        file.set_len(size_bytes)
            .map_err(|error| files::failure("be written", &path, &error))?;
    }
    let wished = record.wish.size.map_or(size_bytes, spec::ByteSize::bytes);
    if wished < size_bytes {
        let text = format!("{wished} bytes were asked for, and what was uploaded is a disk of {size_bytes}");
        return Err(Failure::refused_field(
            "the upload does not fit the volume",
            "size",
            text,
        ));
    }
    let form = Form {
        format: record.wish.format.unwrap_or(format),
        size_bytes: wished,
        preallocation: record.wish.preallocation,
        cluster_bytes: record.wish.cluster_size.map(spec::ByteSize::bytes),
        compressed: record.wish.compressed,
    };
    let as_it_is = form.format == format && form.is_plain();
    if as_it_is {
        let again = file.try_clone();
        let again = again.map_err(|error| files::failure("be opened again", &path, &error))?;
        disk::grow(vec![Source { file: again, format }], wished)?;
        files.place_taken(&file, format)?;
        return outcome(record, &file, format);
    }
    form.check()?;
    let target = files.begin()?;
    let has_room = |bytes| context.check_space(bytes);
    let room = Room::new(&has_room);
    disk::copy(vec![Source { file, format }], &target, &form, &Work { meter, room })?;
    meter.begin("seal", None);
    files.finish(&target, form.format)?;
    files.remove_taken()?;
    outcome(record, &target, form.format)
}

/// What an upload is by now.
enum Taken {
    /// Verified bytes, which may be changed.
    Upload(File),
    /// The volume.
    Placed(File, DiskFormat),
}

/// Verifies the upload, unless an earlier daemon did: that one may have changed it since.
fn open_taken(files: &Files, record: &VolumeRecord, meter: &Meter) -> Result<Taken, Failure> {
    let open = |path: &Path| match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(files::failure("be opened", path, &error)),
    };
    if let Some(file) = open(&files.taken())? {
        return Ok(Taken::Upload(file));
    }
    let path = files.upload();
    if let Some(file) = open(&path)? {
        if let VolumeSource::Upload { sha256: Some(wanted) } = &record.wish.source {
            verify(&file, wanted, meter)?;
        }
        files.verified()?;
        return Ok(Taken::Upload(file));
    }
    let placed = taken_before(files).map(|(file, format)| Taken::Placed(file, format));
    placed.ok_or_else(|| files::failure("be opened", &path, &std::io::ErrorKind::NotFound.into()))
}

/// The volume that an upload became before the daemon ended.
fn taken_before(files: &Files) -> Option<(File, DiskFormat)> {
    [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().find_map(|format| {
        let file = File::options().read(true).write(true).open(files.volume(format)).ok()?;
        Some((file, format))
    })
}

fn outcome(record: &VolumeRecord, file: &File, format: DiskFormat) -> Result<Outcome, Failure> {
    let size_bytes = disk::size(file, format).map_err(|mut failure| {
        failure.detail = format!("volume {}: {}", record.name(), failure.detail);
        failure
    })?;
    Ok(Outcome {
        format,
        size_bytes,
        check: None,
        told: None,
    })
}

fn verify(file: &File, wanted: &str, meter: &Meter) -> Result<(), Failure> {
    let broken =
        |error: std::io::Error| Failure::new(files::code(&error), format!("the upload can not be read: {error}"));
    let total = file.metadata().map_err(broken)?.len();
    meter.begin("verify", Some(total));
    let mut reader = file;
    let (mut hash, mut bytes, mut done) = (Sha256::new(), vec![0; HASH_BYTES], 0);
    std::io::Seek::rewind(&mut reader).map_err(broken)?;
    loop {
        meter.check()?;
        let length = reader.read(&mut bytes).map_err(broken)?;
        let Some(piece) = bytes.get(..length).filter(|piece| !piece.is_empty()) else {
            break;
        };
        hash.update(piece);
        done += piece.len() as u64;
        meter.set(done);
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == wanted.to_ascii_lowercase() {
        return Ok(());
    }
    let text = format!("what was uploaded has the SHA-256 {found}, not {wanted}: send it again into a new volume");
    Err(Failure::new(ErrorCode::ChecksumMismatch, text))
}

fn resize(context: &Context, record: &VolumeRecord, size_bytes: u64) -> Result<Outcome, Failure> {
    let format = record.top().format;
    // It may have grown under a machine that could not tell any more.
    if disk::size(&files::open(context, record, false)?, format)? < size_bytes {
        disk::grow(layers(context, record, 1)?, size_bytes)?;
    }
    outcome(record, &files::open(context, record, false)?, format)
}

/// Begun again after it was cut off, it finds the same chain, or the newest file alone: nothing is left to do then.
fn rebase(context: &Context, record: &VolumeRecord, meter: &Meter) -> Result<Outcome, Failure> {
    let layers = layers(context, record, 1)?;
    let has_room = |bytes| context.check_space(bytes);
    let room = Room::new(&has_room);
    meter.begin("copy", record.size_bytes);
    disk::rebase(layers, &Work { meter, room })?;
    outcome(record, &files::open(context, record, false)?, record.top().format)
}

/// Begun again after it was cut off, it writes the same once more: the record has the newest file until it is done.
fn commit(context: &Context, record: &VolumeRecord, meter: &Meter) -> Result<Outcome, Failure> {
    let Some(below) = record.files().get(1).copied() else {
        return Err(Failure::new(
            ErrorCode::Internal,
            "the record of the volume has nothing below its newest file",
        ));
    };
    let layers = layers(context, record, 2)?;
    let has_room = |bytes| context.check_space(bytes);
    let room = Room::new(&has_room);
    meter.begin("copy", record.size_bytes);
    disk::commit(layers, &Work { meter, room })?;
    outcome(record, &files::open_layer(context, record, below, false)?, below.format)
}

/// How large the file of a copy of a volume would be. Blocks.
pub(crate) fn measure(
    context: &Context,
    record: &VolumeRecord,
    wanted: &VolumeMeasureRequest,
) -> Result<VolumeMeasure, Failure> {
    let form = Form {
        format: wanted.format,
        size_bytes: form(record)?.size_bytes,
        preallocation: wanted.preallocation,
        cluster_bytes: wanted.cluster_size.map(spec::ByteSize::bytes),
        compressed: false,
    };
    disk::measure(layers(context, record, 0)?, &form)
}

fn check(
    context: &Context,
    record: &VolumeRecord,
    repair: Option<VolumeRepair>,
    meter: &Meter,
) -> Result<Outcome, Failure> {
    let top = files::open(context, record, repair.is_some())?;
    meter.begin("check", None);
    let mut check = VolumeCheck {
        at: Timestamp::now(),
        repair,
        errors: 0,
        leaks: 0,
        errors_repaired: 0,
        leaks_repaired: 0,
        details: Vec::new(),
    };
    let all = record.files();
    for layer in &all {
        meter.check()?;
        let found = if *layer == record.top() {
            disk::check(&top, layer.format, repair, meter)?
        } else {
            let file = files::open_layer(context, record, *layer, repair.is_some())?;
            disk::check(&file, layer.format, repair, meter)?
        };
        check.errors += found.errors;
        check.leaks += found.leaks;
        check.errors_repaired += found.errors_repaired;
        check.leaks_repaired += found.leaks_repaired;
        let name = Files::of(context, record.id).name(*layer);
        check
            .details
            .extend(found.details.into_iter().map(|detail| match all.len() {
                1 => detail,
                _ => format!("{name}: {detail}"),
            }));
    }
    let mut told = format!("{} errors, {} leaked clusters", check.errors, check.leaks);
    if repair.is_some() {
        told = format!(
            "{told}; repaired {} errors, gave back {} clusters",
            check.errors_repaired, check.leaks_repaired
        );
    }
    Ok(Outcome {
        check: Some(check),
        told: Some(told),
        format: record.top().format,
        // What is too corrupt to tell its size was still looked at.
        size_bytes: disk::size(&top, record.top().format)
            .ok()
            .or(record.size_bytes)
            .unwrap_or(0),
    })
}

/// The name under which a volume names the disk of an image as its backing file: relative to the volume, so that a state
/// directory may be moved as a whole.
fn backing_name(context: &Context, store: &Store, digest: &ImageDigest) -> PathBuf {
    let path = store.disk_path(digest);
    match path.strip_prefix(&context.config.state_dir) {
        Ok(below) => Path::new("..").join(below),
        Err(_) => path,
    }
}
