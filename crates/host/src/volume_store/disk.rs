//! Work on disk images.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use api_types::{ErrorCode, Preallocation, VolumeMeasure, VolumeRepair};
use disk::probe::{Format, Sample};
use disk::{DiskError, DiskErrorKind};
use disk_image::{
    BackingName, Chain, CheckError, ConvertOptions, CreateOptions, ImageInfo, InfoError, Layer, Repair, Watch,
};
use spec::DiskFormat;

use super::files;
use super::meter::{Meter, cancelled};
use super::room::Room;
use crate::failure::{Failure, chain as chain_text};

/// Zeroes written at a time, bytes.
const ZERO_STEP_BYTES: usize = 4 << 20;

/// How every qcow2 image begins (qcow2 specification, "Header").
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// What form a volume has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) format: DiskFormat,
    pub(super) size_bytes: u64,
    pub(super) preallocation: Preallocation,
    pub(super) cluster_bytes: Option<u64>,
    pub(super) compressed: bool,
}

impl Form {
    /// Whether nothing of it needs the data to be written in a certain way.
    pub(super) fn is_plain(&self) -> bool {
        self.preallocation.is_off() && self.cluster_bytes.is_none() && !self.compressed
    }

    /// What is taken of the file system at once, bytes.
    fn taken_at_once(&self) -> u64 {
        match self.preallocation {
            Preallocation::Falloc | Preallocation::Full => self.size_bytes,
            Preallocation::Off | Preallocation::Metadata => 0,
        }
    }

    /// Fails where its parts do not fit each other, which is known late where the format comes from an upload.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let needs_qcow2 =
            self.cluster_bytes.is_some() || self.compressed || self.preallocation == Preallocation::Metadata;
        if self.format == DiskFormat::Raw && needs_qcow2 {
            let text = "what was uploaded is raw, which has no clusters, metadata or compression; ask for format qcow2";
            return Err(Failure::refused_field(
                "the upload does not fit the volume",
                "format",
                text,
            ));
        }
        Ok(())
    }
}

/// A file of a disk.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) format: DiskFormat,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) errors: u64,
    pub(super) leaks: u64,
    pub(super) errors_repaired: u64,
    pub(super) leaks_repaired: u64,
    pub(super) details: Vec<String>,
}

/// Makes a new volume that reads as zeroes, or as `backing`: the name under which it finds the image it shares blocks with, and how
/// that image's bytes lie there.
pub(super) fn blank(
    file: &File,
    form: &Form,
    backing: Option<&(PathBuf, DiskFormat)>,
    work: &Work<'_>,
) -> Result<(), Failure> {
    let meter = work.meter;
    meter.begin("allocate", None);
    work.room.check(form.taken_at_once())?;
    let backing = backing.map(|(name, format)| BackingName {
        name: name.display().to_string(),
        format: format.suffix().to_owned(),
    });
    let writes_zeroes = form.format == DiskFormat::Raw && form.preallocation == Preallocation::Full;
    let made = match form.preallocation {
        // Written below, where it can be watched and given up.
        Preallocation::Full if writes_zeroes => options(form, Preallocation::Falloc, backing),
        preallocation => options(form, preallocation, backing),
    };
    disk_image::create(file, None, &made).map_err(|error| trouble("the volume can not be made", &error))?;
    meter.check()?;
    if writes_zeroes {
        write_zeroes(file, form.size_bytes, meter)?;
    }
    Ok(())
}

/// Copies what a chain of images holds into a new volume.
pub(super) fn copy(source: Vec<Source>, target: &File, form: &Form, work: &Work<'_>) -> Result<(), Failure> {
    let meter = work.meter;
    work.room.check(form.taken_at_once())?;
    let chain = chain_of(source, 0)?;
    meter.begin("copy", Some(form.size_bytes));
    let options = ConvertOptions {
        compressed: form.compressed,
        ..ConvertOptions::to(options(form, form.preallocation, None))
    };
    let copied = disk_image::convert(&chain, target, &options, work);
    copied.map_err(|error| work.failure("the copy could not be made", &error))
}

/// Has the newest image of a chain hold by itself what it shows.
pub(super) fn rebase(layers: Vec<Source>, work: &Work<'_>) -> Result<(), Failure> {
    let chain = chain_of(layers, 1)?;
    let rebased = disk_image::rebase(&chain, None, work);
    rebased.map_err(|error| work.failure("the volume can not be made to stand alone", &error))
}

/// Writes what the newest image of a chain holds into the one below it.
pub(super) fn commit(layers: Vec<Source>, work: &Work<'_>) -> Result<(), Failure> {
    let chain = chain_of(layers, 2)?;
    let committed = disk_image::commit(&chain, work);
    committed.map_err(|error| work.failure("the newest file can not be committed", &error))
}

/// How large the file of a new image would be that takes what a chain shows.
pub(super) fn measure(layers: Vec<Source>, form: &Form) -> Result<VolumeMeasure, Failure> {
    let chain = chain_of(layers, 0)?;
    let measured = disk_image::measure(&chain, &options(form, form.preallocation, None));
    let measured = measured.map_err(|error| trouble("the volume can not be measured", &error))?;
    Ok(VolumeMeasure {
        required_bytes: measured.required,
        fully_allocated_bytes: measured.fully_allocated,
    })
}

/// What an upload is, by its content: its format and the size of its disk, bytes. Refused unless it stands on its own.
pub(super) fn judge(file: &File) -> Result<(DiskFormat, u64), Failure> {
    let unreadable = |error| Failure::new(files::code(&error), format!("the upload can not be read: {error}"));
    let format = match Sample::of_file(file).map_err(unreadable)?.format() {
        Format::Raw | Format::Iso9660 => DiskFormat::Raw,
        Format::Qcow2 => DiskFormat::Qcow2,
        other => {
            let text =
                format!("what was uploaded is {other}; unpack or convert it first: raw and qcow2 images are taken");
            return Err(Failure::new(ErrorCode::DiskRefused, text));
        }
    };
    let refused = |error| match trouble("what was uploaded can not be used", &error) {
        failure if failure.code == ErrorCode::Internal && !is_of_host(&error) => Failure {
            code: ErrorCode::DiskRefused,
            ..failure
        },
        failure => failure,
    };
    let info = info(file, format).map_err(refused)?;
    let elsewhere = info.qcow2.as_ref().and_then(|qcow2| {
        let backing = qcow2.backing_filename.as_deref();
        let data = qcow2.format_specific.data_file_raw.map(|_| "");
        backing
            .map(|name| format!("a backing file, {name:?}: send a copy of the whole, as qemu-img convert makes it"))
            .or_else(|| {
                data.map(|_| {
                    "its data in another file: send a copy of the whole, as qemu-img convert makes it".to_owned()
                })
            })
    });
    match elsewhere {
        Some(what) => Err(Failure::new(
            ErrorCode::DiskNotStandalone,
            format!("what was uploaded has {what}"),
        )),
        None if info.virtual_size_bytes == 0 => Err(Failure::new(
            ErrorCode::DiskRefused,
            "what was uploaded is a disk of no size",
        )),
        None => Ok((format, info.virtual_size_bytes)),
    }
}

/// Whether there is a qcow2 image in a file, whatever it is worth.
pub(super) fn is_qcow2(file: &File) -> io::Result<bool> {
    let mut start = [0; QCOW2_MAGIC.len()];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) => Ok(start == *QCOW2_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Name of the image that the one in a file is backed by, if it is.
pub(super) fn backing(file: &File, format: DiskFormat) -> Result<Option<String>, Failure> {
    let info = info(file, format).map_err(|error| trouble("its file can not be read", &error))?;
    Ok(info.qcow2.and_then(|qcow2| qcow2.backing_filename))
}

/// Makes an image that reads as zeroes, with nothing special about it.
pub(super) fn plain(file: &File, format: DiskFormat, size_bytes: u64) -> Result<(), Failure> {
    let form = Form {
        format,
        size_bytes,
        preallocation: Preallocation::Off,
        cluster_bytes: None,
        compressed: false,
    };
    disk_image::create(file, None, &options(&form, Preallocation::Off, None))
        .map_err(|error| trouble("the new file can not be made", &error))
}

/// Size of the disk in a file, bytes.
pub(super) fn size(file: &File, format: DiskFormat) -> Result<u64, Failure> {
    let info = info(file, format).map_err(|error| trouble("its file can not be read", &error))?;
    Ok(info.virtual_size_bytes)
}

/// Makes the disk in a chain of images this large, unless it is that large already.
pub(super) fn grow(layers: Vec<Source>, size_bytes: u64) -> Result<(), Failure> {
    let chain = chain_of(layers, 1)?;
    disk_image::resize(&chain, size_bytes).map_err(|error| trouble("the volume can not be made larger", &error))
}

/// Checks the image in a file, and repairs it.
pub(super) fn check(
    file: &File,
    format: DiskFormat,
    repair: Option<VolumeRepair>,
    meter: &Meter,
) -> Result<Found, Failure> {
    let repair = repair.map(|repair| match repair {
        VolumeRepair::Leaks => Repair::Leaks,
        VolumeRepair::All => Repair::All,
    });
    let found = disk_image::check_watched(file, format, repair, &Looked(meter));
    let found = found.map_err(|error| match error {
        CheckError::Stopped => cancelled(),
        error => trouble("the volume can not be checked", &error),
    })?;
    Ok(Found {
        errors: found.corruptions + found.check_errors,
        leaks: found.leaks,
        errors_repaired: found.corruptions_fixed,
        leaks_repaired: found.leaks_fixed,
        details: found.problems,
    })
}

/// Tells a job's meter what was looked at. How much there is to look at is not known before.
struct Looked<'a>(&'a Meter);

impl Watch for Looked<'_> {
    fn progress(&self, done_bytes: u64, _: u64) {
        self.0.set(done_bytes);
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped()
    }
}

/// What accompanies work that writes a disk.
pub(super) struct Work<'a> {
    pub(super) meter: &'a Meter,
    pub(super) room: Room<'a>,
}

impl Work<'_> {
    /// Why work ended early: for want of room, because it was given up, or by this error.
    fn failure(&self, what: &str, error: &(dyn Error + 'static)) -> Failure {
        if let Some(failure) = self.room.lack() {
            failure
        } else if self.meter.stopped() {
            cancelled()
        } else {
            trouble(what, error)
        }
    }
}

impl Watch for Work<'_> {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.meter.set_of(done_bytes, total_bytes);
        self.room.done(done_bytes);
    }

    fn is_stopped(&self) -> bool {
        self.meter.stopped() || self.room.lack().is_some()
    }
}

fn options(form: &Form, preallocation: Preallocation, backing: Option<BackingName>) -> CreateOptions {
    let preallocation = match preallocation {
        Preallocation::Off => disk_image::Preallocation::Off,
        Preallocation::Metadata => disk_image::Preallocation::Metadata,
        Preallocation::Falloc => disk_image::Preallocation::Falloc,
        Preallocation::Full => disk_image::Preallocation::Full,
    };
    match CreateOptions::qcow2(form.size_bytes) {
        CreateOptions::Qcow2(mut options) if form.format == DiskFormat::Qcow2 => {
            options.preallocation = preallocation;
            options.backing = backing;
            options.cluster_bytes = form.cluster_bytes.unwrap_or(options.cluster_bytes);
            CreateOptions::Qcow2(options)
        }
        _ => CreateOptions::Raw {
            size_bytes: form.size_bytes,
            preallocation,
        },
    }
}

/// The images as a chain, top first; only the first `written` may be written.
fn chain_of(layers: Vec<Source>, written: usize) -> Result<Chain, Failure> {
    let mut layers = (0..).zip(layers).map(|(place, source)| Layer {
        name: format!("{} image", source.format.suffix()),
        format: source.format,
        file: source.file,
        writable: place < written,
        data_file: None,
    });
    let top = layers.next();
    let top = top.ok_or_else(|| Failure::new(ErrorCode::Internal, "there is no image to work on"))?;
    Ok(Chain::new(top, layers.collect()))
}

fn info(file: &File, format: DiskFormat) -> Result<ImageInfo, InfoError> {
    let again = file.try_clone().map_err(|source| InfoError::File {
        name: "volume".to_owned(),
        source,
    })?;
    let mut layers = disk_image::info(&Chain::of_file("volume", again, format, false))?;
    layers.pop().ok_or_else(|| InfoError::File {
        name: "volume".to_owned(),
        source: io::ErrorKind::UnexpectedEof.into(),
    })
}

fn write_zeroes(file: &File, size_bytes: u64, meter: &Meter) -> Result<(), Failure> {
    let zeroes = vec![0; ZERO_STEP_BYTES];
    let mut done = 0;
    meter.begin("write", Some(size_bytes));
    while done < size_bytes {
        meter.check()?;
        let left = usize::try_from(size_bytes - done).unwrap_or(usize::MAX);
        let piece = zeroes.get(..left).unwrap_or(&zeroes);
        file.write_all_at(piece, done)
            .map_err(|error| trouble("the volume can not be written", &error))?;
        done += piece.len() as u64;
        meter.set(done);
    }
    Ok(())
}

/// Whether the kernel refused something, which says nothing of what is in an image.
fn is_of_host(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let from_kernel = error.downcast_ref::<io::Error>();
        if from_kernel.is_some_and(|error| error.raw_os_error().is_some()) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// `what`, why, and what kind of trouble that is: the deepest cause that is of a known kind decides.
pub(crate) fn trouble(what: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut code = ErrorCode::Internal;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<DiskError>() {
            code = match error.kind() {
                DiskErrorKind::NoSpace => ErrorCode::NoSpace,
                DiskErrorKind::Corrupt | DiskErrorKind::Unsupported => ErrorCode::DiskRefused,
                DiskErrorKind::Cancelled => ErrorCode::Cancelled,
                _ => code,
            };
        } else if let Some(error) = error.downcast_ref::<io::Error>()
            && files::code(error) == ErrorCode::NoSpace
        {
            code = ErrorCode::NoSpace;
        }
        cause = error.source();
    }
    let hint = match code {
        ErrorCode::NoSpace => "; nothing was kept of what is new: remove machines, volumes or images, and try again",
        _ => "",
    };
    Failure::new(code, format!("{what}: {}{hint}", chain_text(error)))
}
