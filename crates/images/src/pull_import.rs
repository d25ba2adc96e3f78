//! From layers on disk to a sealed image.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::flatten::Flatten;
use crate::progress::Meter;
use crate::seal::Workspace;
use crate::store::{DISK, INITRD, KERNEL};
use crate::unpack::{Contents, Found, LayerFile, Unpacker};
use crate::wanted::Wanted;
use crate::{
    ConvertError, DiskFormat, DiskRecord, FileRecord, ImageDigest, ImageRecord, Phase, Progress, PullError,
    SourceFormat, Store, disk_format, durable, record,
};

/// The blocking half of a pull: from layers on disk to the sealed image.
pub(crate) struct Import {
    pub(crate) store: Store,
    pub(crate) reference: String,
    pub(crate) digest: ImageDigest,
    pub(crate) index_digest: Option<ImageDigest>,
    pub(crate) label: Option<String>,
    pub(crate) layers: Vec<LayerFile>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) stop: CancellationToken,
    /// Keeps the layers until this is done, also when nobody waits for it any more.
    pub(crate) wanted: Arc<Wanted>,
}

impl Import {
    /// Runs; once more if the file system was full and dropping layers nobody wants made room.
    pub(crate) fn run_with_room(self) -> Result<ImageRecord, PullError> {
        let result = match self.run() {
            Err(PullError::DiskFull { .. }) if self.store.drop_unused() => self.run(),
            result => result,
        };
        drop(self.wanted);
        match result {
            // Whatever part ran into the full disk, the operator looks at the store.
            Err(PullError::DiskFull { .. }) => Err(PullError::DiskFull {
                path: self.store.0.settings.root.clone(),
            }),
            result => result,
        }
    }

    fn run(&self) -> Result<ImageRecord, PullError> {
        let workspace = Workspace(self.store.fresh_tmp("import"));
        let dir = workspace.0.as_path();
        self.store.make_dir(dir).map_err(PullError::io("create", dir))?;
        let contents = self.unpack(dir)?;
        let disk = self.make_disk(dir, &contents.disk)?;
        self.check_stop()?;
        Meter::new(&self.progress, Phase::Sealing, 0);
        let kernel = place(dir, contents.kernel, KERNEL)?;
        let initrd = place(dir, contents.initrd, INITRD)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let image = ImageRecord {
            digest: self.digest.clone(),
            index_digest: self.index_digest.clone(),
            reference: self.reference.clone(),
            disk,
            kernel,
            initrd,
            cmdline: contents.cmdline.or_else(|| self.label.clone()),
            imported_at_s: now.as_secs(),
            origin: None,
        };
        self.seal(dir, &image)?;
        Ok(image)
    }

    fn check_stop(&self) -> Result<(), PullError> {
        if self.stop.is_cancelled() {
            Err(PullError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn unpack(&self, dir: &Path) -> Result<Contents, PullError> {
        let length = |layer: &LayerFile| layer.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let mut meter = Meter::new(&self.progress, Phase::Unpacking, self.layers.iter().map(length).sum());
        let mut unpacker = Unpacker::new(dir, self.store.0.settings.max_disk_bytes, &[]);
        for layer in &self.layers {
            let added = unpacker.add(layer, &mut |bytes| {
                meter.add(bytes);
                !self.stop.is_cancelled()
            });
            added.map_err(|failure| failure.of_pull(&layer.digest))?;
        }
        unpacker.finish()
    }

    /// Turns what the image brought into `disk.raw`.
    fn make_disk(&self, dir: &Path, found: &Found) -> Result<DiskRecord, PullError> {
        let settings = &self.store.0.settings;
        let file = File::open(&found.file).map_err(PullError::io("open", &found.file))?;
        let probed = disk_format::probe(&file, settings.max_disk_bytes).map_err(PullError::io("read", &found.file))?;
        let (source_format, size_bytes) = probed.map_err(|source| PullError::Disk {
            path: format!("/{}", found.path),
            source,
        })?;
        let target = dir.join(DISK);
        let virtual_bytes = size_bytes.next_multiple_of(512);
        match source_format {
            DiskFormat::Raw => {
                std::fs::rename(&found.file, &target).map_err(PullError::io("rename", &found.file))?;
                File::options()
                    .write(true)
                    .open(&target)
                    .and_then(|file| file.set_len(virtual_bytes))
                    .map_err(PullError::io("grow", &target))?;
            }
            DiskFormat::Qcow2 => {
                self.convert(found, &target, size_bytes)?;
                std::fs::remove_file(&found.file).map_err(PullError::io("remove", &found.file))?;
            }
        }
        Ok(DiskRecord {
            source_path: found.path.clone(),
            source_format: match source_format {
                DiskFormat::Raw => SourceFormat::Raw,
                DiskFormat::Qcow2 => SourceFormat::Qcow2,
            },
            source_bytes: found.size,
            virtual_bytes,
            format: DiskFormat::Raw,
            file_bytes: virtual_bytes,
            digest: None,
        })
    }

    fn convert(&self, found: &Found, target: &Path, size_bytes: u64) -> Result<(), PullError> {
        let settings = &self.store.0.settings;
        let mut meter = Meter::new(&self.progress, Phase::Converting, size_bytes);
        let job = Flatten {
            program: settings.qemu_img.as_deref(),
            source: &found.file,
            target,
            size_bytes,
            limit: settings.convert_limit,
        };
        let done = job.run(&mut |done| meter.set(done), &|| self.stop.is_cancelled());
        done.map_err(|error| match error {
            ConvertError::Cancelled => PullError::Cancelled,
            ConvertError::DiskFull => PullError::DiskFull {
                path: settings.root.clone(),
            },
            ConvertError::Target(source) => PullError::io("create", target)(source),
            source => PullError::Convert {
                path: format!("/{}", found.path),
                source,
            },
        })
    }

    /// Makes every file durable and read-only, then lets the image appear in one step.
    fn seal(&self, dir: &Path, image: &ImageRecord) -> Result<(), PullError> {
        let path = dir.join(record::FILE_NAME);
        let json = image
            .to_json()
            .map_err(|error| PullError::io("write", &path)(error.into()))?;
        std::fs::write(&path, json).map_err(PullError::io("write", &path))?;
        let parts = [
            Some(record::FILE_NAME),
            Some(DISK),
            image.kernel.as_ref().map(|_| KERNEL),
            image.initrd.as_ref().map(|_| INITRD),
        ];
        for name in parts.into_iter().flatten() {
            let path = dir.join(name);
            durable::seal_file(&path).map_err(PullError::io("seal", &path))?;
        }
        for entry in std::fs::read_dir(dir).map_err(PullError::io("list", dir))? {
            let path = entry.map_err(PullError::io("list", dir))?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("found-"))
            {
                std::fs::remove_file(&path).map_err(PullError::io("remove", &path))?;
            }
        }
        durable::sync_dir(dir).map_err(PullError::io("sync", dir))?;
        self.check_stop()?;
        let target = self.store.image_dir(&image.digest);
        // What may lie there is damaged, or `pull` would have used it.
        durable::remove_all(&target).map_err(PullError::io("replace", &target))?;
        std::fs::rename(dir, &target).map_err(PullError::io("rename", &target))?;
        durable::seal_dir(&target).map_err(PullError::io("seal", &target))?;
        let parent = self.store.images();
        durable::sync_dir(&parent).map_err(PullError::io("sync", &parent))
    }
}

/// Gives a found file its place in the image.
fn place(dir: &Path, found: Option<Found>, name: &str) -> Result<Option<FileRecord>, PullError> {
    let Some(found) = found else { return Ok(None) };
    let target = dir.join(name);
    std::fs::rename(&found.file, &target).map_err(PullError::io("rename", &found.file))?;
    Ok(Some(FileRecord {
        source_path: found.path,
        size_bytes: found.size,
        digest: None,
    }))
}
