//! From files in a workspace to a sealed image.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use image_formats::convert::{Conversion, ConvertLimits, Target};
use image_formats::{Format, Inspection};
use sha2::Digest as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::intake::Room;
use crate::partial::Partial;
use crate::progress::Meter;
use crate::store::{INITRD, KERNEL};
use crate::{
    DiskFormat, DiskRecord, ImageDigest, ImageRecord, ImportError, Phase, Progress, SourceFormat, Store, StoreError,
    durable, record, store,
};

/// Unit of a raw disk's length, bytes.
const SECTOR: u64 = 512;
/// Bytes read at a time for a digest.
const PIECE: usize = 1 << 20;

/// A directory under `tmp/` that goes when its import does.
pub(crate) struct Workspace(pub(crate) PathBuf);

impl Workspace {
    /// Makes it.
    pub(crate) fn make(store: &Store) -> Result<Self, ImportError> {
        let path = store.fresh_tmp("import");
        store.make_dir(&path).map_err(ImportError::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = durable::remove_all(&self.0) {
            tracing::warn!(path = %self.0.display(), "cannot remove what an import left: {error}");
        }
    }
}

/// A disk as its source had it.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) path: PathBuf,
    pub(crate) inspection: Inspection,
    /// SHA-256 of the file, if it is known.
    pub(crate) sha256: Option<ImageDigest>,
    /// Path in the container image or archive.
    pub(crate) source_path: String,
}

/// What the end of an import works with.
pub(crate) struct Sealing<'a> {
    pub(crate) store: &'a Store,
    pub(crate) dir: &'a Path,
    pub(crate) room: &'a Room,
    pub(crate) progress: &'a watch::Sender<Progress>,
    pub(crate) stop: &'a CancellationToken,
}

impl Sealing<'_> {
    fn check_stop(&self) -> Result<(), ImportError> {
        if self.stop.is_cancelled() {
            Err(ImportError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Gives the disk its place in the workspace; converts what machines cannot use. Returns the digest of the file too.
    pub(crate) fn place_disk(&self, disk: DiskFile) -> Result<(DiskRecord, ImageDigest), ImportError> {
        let inspection = disk.inspection;
        let source_format =
            SourceFormat::of(inspection.format).ok_or(image_formats::Refusal::NotAllowed(inspection.format))?;
        let format = match inspection.format {
            Format::Raw | Format::Iso9660 => DiskFormat::Raw,
            _ => DiskFormat::Qcow2,
        };
        let target = self.dir.join(format.file_name());
        let mut virtual_bytes = inspection.virtual_size_bytes.unwrap_or(inspection.size_bytes);
        let mut sha256 = disk.sha256;
        if inspection.is_foreign() {
            virtual_bytes = self.convert(&disk.path, &target, virtual_bytes)?;
            std::fs::remove_file(&disk.path).map_err(ImportError::io("remove", &disk.path))?;
            sha256 = None;
        } else {
            std::fs::rename(&disk.path, &target).map_err(ImportError::io("rename", &disk.path))?;
            if format == DiskFormat::Raw && !virtual_bytes.is_multiple_of(SECTOR) {
                virtual_bytes = virtual_bytes.next_multiple_of(SECTOR);
                let file = File::options().write(true).open(&target);
                file.and_then(|file| file.set_len(virtual_bytes))
                    .map_err(ImportError::io("grow", &target))?;
                sha256 = None;
            }
        }
        let digest = match sha256 {
            Some(digest) => digest,
            None => self.hash(&target)?,
        };
        let file_bytes = target.metadata().map_err(ImportError::io("measure", &target))?.len();
        let record = DiskRecord {
            source_path: disk.source_path,
            source_format,
            source_bytes: inspection.size_bytes,
            virtual_bytes,
            format,
            file_bytes,
            digest: Some(digest.clone()),
        };
        Ok((record, digest))
    }

    fn convert(&self, source: &Path, target: &Path, size_bytes: u64) -> Result<u64, ImportError> {
        let settings = self.store.settings();
        let mut meter = Meter::new(self.progress, Phase::Converting, size_bytes);
        let absolute = |path: &Path| std::path::absolute(path).map_err(ImportError::io("find", path));
        let job = Conversion {
            program: settings.qemu_img.clone(),
            source: absolute(source)?,
            target: absolute(target)?,
            format: Target::Qcow2,
            limits: ConvertLimits {
                time: settings.convert_limit,
                cpu: settings.convert_limit,
                ..ConvertLimits::up_to(settings.max_disk_bytes)
            },
        };
        let done = job.run(&mut |done| meter.set(done), &|| self.stop.is_cancelled())?;
        self.room
            .check(store::occupied(target).map_err(ImportError::io("measure", target))?)?;
        Ok(done.virtual_size_bytes)
    }

    /// SHA-256 of a file.
    pub(crate) fn hash(&self, path: &Path) -> Result<ImageDigest, ImportError> {
        match hash_file(path, &|| self.stop.is_cancelled()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(ImportError::Cancelled),
            result => result.map_err(ImportError::io("read", path)),
        }
    }

    /// Makes every file durable and read-only, then lets the image appear in one step. Returns the image that is in the store
    /// now, and whether it was there before.
    pub(crate) fn seal(&self, image: ImageRecord) -> Result<(ImageRecord, bool), ImportError> {
        Meter::new(self.progress, Phase::Sealing, 0);
        self.check_stop()?;
        self.store.check_available()?;
        let dir = self.dir;
        let taken = store::occupied(dir).map_err(ImportError::io("measure", dir))?;
        let path = dir.join(record::FILE_NAME);
        let json = image
            .to_json()
            .map_err(|error| ImportError::io("write", &path)(error.into()))?;
        std::fs::write(&path, json).map_err(ImportError::io("write", &path))?;
        let parts = [
            Some(record::FILE_NAME),
            Some(image.disk.format.file_name()),
            image.kernel.as_ref().map(|_| KERNEL),
            image.initrd.as_ref().map(|_| INITRD),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        for entry in store::children(dir).map_err(ImportError::io("list", dir))? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if parts.contains(&&*name) {
                durable::seal_file(&entry).map_err(ImportError::io("seal", &entry))?;
            } else {
                durable::remove_all(&entry).map_err(ImportError::io("remove", &entry))?;
            }
        }
        durable::sync_dir(dir).map_err(ImportError::io("sync", dir))?;
        self.check_stop()?;
        let _one_at_a_time = self.store.0.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.store.get(&image.digest) {
            Ok(there) => return Ok((there, true)),
            Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.room_for(taken)?;
        // A store that was lost meanwhile and is back has been cleared.
        for part in &parts {
            let path = dir.join(part);
            path.symlink_metadata().map_err(ImportError::io("find", &path))?;
        }
        let target = self.store.image_dir(&image.digest);
        durable::remove_all(&target).map_err(ImportError::io("replace", &target))?;
        std::fs::rename(dir, &target).map_err(ImportError::io("rename", &target))?;
        durable::seal_dir(&target).map_err(ImportError::io("seal", &target))?;
        let parent = self.store.images();
        durable::sync_dir(&parent).map_err(ImportError::io("sync", &parent))?;
        tracing::info!(image = %image.digest, source = image.reference, "image sealed");
        Ok((image, false))
    }

    /// Looked at again, since other imports may have ended meanwhile. Beginnings do not count any more: this import's own is what
    /// is sealed, and others give way.
    fn room_for(&self, taken_bytes: u64) -> Result<(), ImportError> {
        self.store.room_for_images(0)?.check(taken_bytes)
    }
}

impl Store {
    /// What the quota and the space that stays free leave to an import, beside images and the beginnings of other imports.
    pub(crate) fn room(&self) -> Result<Room, ImportError> {
        self.room_beside(None)
    }

    /// As [`Self::room`], for an import that goes on with `own`.
    pub(crate) fn room_beside(&self, own: Option<&Partial>) -> Result<Room, ImportError> {
        if self.settings().quota_bytes.is_none() {
            return self.room_for_images(0);
        }
        let partial = self.partial();
        let measured = |path: &Path| store::occupied(path).map_err(ImportError::io("measure", path));
        let own = own.map_or(Ok(0), |own| measured(own.dir()))?;
        let begun = measured(&partial)?.saturating_sub(own);
        self.room_for_images(begun)
    }

    /// What is left when images and `besides_bytes` are counted.
    fn room_for_images(&self, besides_bytes: u64) -> Result<Room, ImportError> {
        let store = self.name().clone();
        let settings = self.settings();
        let mut room = Room {
            left_bytes: u64::MAX,
            store,
            limit_bytes: u64::MAX,
            root: settings.root.clone(),
            reserved_bytes: settings.reserved_bytes,
        };
        if let Some(limit_bytes) = settings.quota_bytes {
            let images = self.images();
            let used = store::occupied(&images).map_err(ImportError::io("measure", &images))?;
            let used = used.saturating_add(besides_bytes);
            room.left_bytes = limit_bytes.saturating_sub(used);
            room.limit_bytes = limit_bytes;
        }
        Ok(room)
    }
}

/// Now, seconds since the epoch.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// SHA-256 of a file's bytes, holes as zeros. [`io::ErrorKind::Interrupted`] when `stop` says so.
pub(crate) fn hash_file(path: &Path, stop: &dyn Fn() -> bool) -> io::Result<ImageDigest> {
    let mut file = File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; PIECE];
    loop {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(ImageDigest::finish(hasher)),
            Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
