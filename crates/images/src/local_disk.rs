//! Images made from disks of this host: what a machine or a volume has on its disk becomes an image of its own.
//!
//! The disk is read once, layer over layer, and written as one qcow2 in order: the same contents are the same image, whatever they
//! were made of. Nothing of the result leads anywhere else.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::{DiskError, DiskErrorKind};
use disk_image::{Chain, ConvertOptions, CreateOptions, Watch};
use image_formats::Refusal;
use image_trust::{DigestSet, Digests, HashMethod};

use crate::ending::Parts;
use crate::import::Job;
use crate::intake::Room;
use crate::progress::Meter;
use crate::seal::{Workspace, hash_file};
use crate::store::{INITRD, KERNEL, occupied};
use crate::{DiskFormat, DiskRecord, FileRecord, ImageDigest, ImportError, Imported, Phase, Progress, SourceFormat};

/// Bytes read at a time for digests.
const PIECE_BYTES: usize = 1 << 20;
/// How often the room that is left is looked at, in bytes that were dealt with.
const LOOK_EVERY_BYTES: u64 = 64 << 20;

/// A disk of this host.
pub struct LocalDisk {
    /// Its images, open. Whoever opened them sees to it that nobody writes them meanwhile.
    pub chain: Chain,
    /// What it is called, for people and records.
    pub name: String,
    /// What it is booted with, which the image shall bring too.
    pub boot: BootParts,
}

/// What a disk is booted with, where the machine's firmware does not find that on the disk itself.
#[derive(Debug, Default)]
pub struct BootParts {
    /// The kernel, open for reading.
    pub kernel: Option<File>,
    /// The initrd, open for reading.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
}

impl fmt::Debug for LocalDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalDisk")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Reads the disk into a workspace, judges and seals it. Blocks.
    pub(crate) fn local_disk(&self, source: &LocalDisk) -> Result<Imported, ImportError> {
        let workspace = Workspace::make(&self.store)?;
        let (dir, room) = (workspace.0.as_path(), self.store.room()?);
        let virtual_bytes = disk_image::virtual_size(&source.chain)
            .map_err(|error| ImportError::disk(disk_image::ConvertError::Source(error), dir))?;
        if virtual_bytes > self.expected.max_virtual_bytes {
            return Err(ImportError::Refused(Refusal::VirtualSize {
                size_bytes: virtual_bytes,
                limit_bytes: self.expected.max_virtual_bytes,
            }));
        }
        let path = dir.join(DiskFormat::Qcow2.file_name());
        self.write(source, virtual_bytes, &path, &room)?;
        let file_bytes = path.metadata().map_err(ImportError::io("measure", &path))?.len();
        let digests = self.digests(&path, file_bytes)?;
        let verdict = self.proofs.judge(&self.trust, &self.trusted, &digests, None)?;
        let sha256 = digests.get(HashMethod::Sha256).and_then(ImageDigest::from_bytes);
        let sealing = self.sealing(dir, &room);
        let disk_digest = match sha256 {
            Some(digest) => digest,
            None => sealing.hash(&path)?,
        };
        let (kernel, initrd, cmdline) = self.boot_files(source, dir)?;
        let parts = Parts {
            disk: DiskRecord {
                source_path: String::new(),
                source_format: SourceFormat::Qcow2,
                source_bytes: file_bytes,
                virtual_bytes,
                format: DiskFormat::Qcow2,
                file_bytes,
                digest: Some(disk_digest.clone()),
            },
            disk_digest,
            index_digest: None,
            kernel,
            initrd,
            cmdline,
        };
        self.end(&sealing, parts, verdict, digests)
    }

    fn write(&self, source: &LocalDisk, virtual_bytes: u64, path: &Path, room: &Room) -> Result<(), ImportError> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(ImportError::io("create", path))?;
        let options = ConvertOptions {
            in_order: true,
            ..ConvertOptions::to(CreateOptions::qcow2(virtual_bytes))
        };
        let watch = Watching {
            job: self,
            path,
            room,
            looked_at: AtomicU64::new(0),
            full: Mutex::default(),
        };
        let written = disk_image::convert(&source.chain, &file, &options, &watch);
        if let Some(full) = watch.full.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(full);
        }
        if self.stop.is_cancelled() {
            return Err(ImportError::Cancelled);
        }
        written.map_err(|error| ImportError::disk(error, path))?;
        room.check(occupied(path).map_err(ImportError::io("measure", path))?)
    }

    /// By every method that is asked for.
    fn digests(&self, path: &Path, file_bytes: u64) -> Result<DigestSet, ImportError> {
        let failed = || ImportError::io("read", path);
        let mut meter = Meter::new(&self.progress, Phase::Sealing, file_bytes);
        let mut digests = Digests::new(self.proofs.methods());
        let mut file = File::open(path).map_err(failed())?;
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            if self.stop.is_cancelled() {
                return Err(ImportError::Cancelled);
            }
            match file.read(&mut buffer) {
                Ok(0) => return Ok(digests.finish()),
                Ok(count) => {
                    digests.update(buffer.get(..count).unwrap_or_default());
                    meter.add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed()(error)),
            }
        }
    }

    /// What the disk is booted with, beside it in the workspace.
    fn boot_files(&self, source: &LocalDisk, dir: &Path) -> Result<BootFiles, ImportError> {
        let BootParts {
            kernel,
            initrd,
            cmdline,
        } = &source.boot;
        let copy = |name: &str, file: &Option<File>| -> Result<Option<FileRecord>, ImportError> {
            let Some(from) = file else { return Ok(None) };
            let (to, stop) = (dir.join(name), || self.stop.is_cancelled());
            let copied = crate::clone::copy_shared(from, &to, &stop).and_then(|()| hash_file(&to, &stop));
            let digest = copied.map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted if stop() => ImportError::Cancelled,
                _ => ImportError::io("copy", &to)(error),
            })?;
            Ok(Some(FileRecord {
                source_path: String::new(),
                size_bytes: to.metadata().map_err(ImportError::io("measure", &to))?.len(),
                digest: Some(digest),
            }))
        };
        Ok((copy(KERNEL, kernel)?, copy(INITRD, initrd)?, cmdline.clone()))
    }
}

/// Kernel, initrd and command line.
type BootFiles = (Option<FileRecord>, Option<FileRecord>, Option<String>);

/// Tells how far the reading is, and ends it where there is no more room.
struct Watching<'a> {
    job: &'a Job,
    path: &'a Path,
    room: &'a Room,
    looked_at: AtomicU64,
    full: Mutex<Option<ImportError>>,
}

impl Watching<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<ImportError>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Watching<'_> {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.job.progress.send_replace(Progress {
            phase: Phase::Copying,
            done_bytes,
            total_bytes,
        });
        if done_bytes < self.looked_at.load(Ordering::Relaxed).saturating_add(LOOK_EVERY_BYTES) {
            return;
        }
        self.looked_at.store(done_bytes, Ordering::Relaxed);
        let checked = occupied(self.path)
            .map_err(ImportError::io("measure", self.path))
            .and_then(|taken| self.room.check(taken));
        if let Err(error) = checked {
            *self.lock() = Some(error);
        }
    }

    fn is_stopped(&self) -> bool {
        self.job.stop.is_cancelled() || self.lock().is_some()
    }
}

impl ImportError {
    /// A disk of this host could not be read, or not be written anew at `path`.
    fn disk(error: disk_image::ConvertError, path: &Path) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let is_full = match error.downcast_ref::<DiskError>() {
                Some(error) => error.kind() == DiskErrorKind::NoSpace,
                None => error.downcast_ref::<io::Error>().is_some_and(|error| {
                    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                }),
            };
            if is_full {
                return Self::DiskFull(path.to_path_buf());
            }
            cause = error.source();
        }
        Self::LocalDisk(Box::new(error))
    }
}
