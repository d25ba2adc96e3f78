//! The store of sealed images.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::anchor::Anchor;
use crate::registry::ClientsOfAll;
use crate::{DiskFormat, ImageDigest, ImageRecord, StoreName, durable, record};

/// Name of a raw disk inside an image's directory.
pub(crate) const DISK: &str = DiskFormat::Raw.file_name();
/// Name of the kernel inside an image's directory.
pub(crate) const KERNEL: &str = "kernel";
/// Name of the initrd inside an image's directory.
pub(crate) const INITRD: &str = "initrd";

/// What an operator decides about a store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it is called. Default `default`.
    pub name: StoreName,
    /// Most disk space its images may take, bytes. Default none.
    pub quota_bytes: Option<u64>,
    /// Whether its root has to be the root of a mounted file system, so that nothing is written to the directory beneath while
    /// the mount is missing. Default no.
    pub must_be_mounted: bool,
    /// A file outside of the store where its identity is remembered from its first opening on, so that another directory in its
    /// place, as the one beneath a missing mount, is not taken for it. Default none.
    pub remembered: Option<PathBuf>,
    /// Where the store lives. Default `/var/lib/karat`.
    pub root: PathBuf,
    /// Registries spoken to over plain HTTP, as written in references: `host` or `host:port`. Default none.
    pub insecure_registries: Vec<String>,
    /// Credentials for registries, in a file as `docker login` writes it; read anew for each use. Default none.
    pub registry_auth_file: Option<PathBuf>,
    /// `qemu-img`, if it is in none of `/usr/bin`, `/usr/local/bin`, `/bin`.
    pub qemu_img: Option<PathBuf>,
    /// How often an import from the web makes what it has durable, so that it goes on there after a crash, bytes. Default 64 MiB.
    pub checkpoint_bytes: u64,
    /// Largest disk an image may have, bytes, as its guest sees it. Default 256 GiB.
    pub max_disk_bytes: u64,
    /// Bytes that stay free on the store's file system, whatever is fetched or copied. Default none.
    pub reserved_bytes: u64,
    /// How long one conversion to raw may take. Default one hour.
    pub convert_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: StoreName::default(),
            quota_bytes: None,
            must_be_mounted: false,
            remembered: None,
            root: PathBuf::from("/var/lib/karat"),
            insecure_registries: Vec::new(),
            registry_auth_file: None,
            qemu_img: None,
            checkpoint_bytes: 64 << 20,
            max_disk_bytes: 256 << 30,
            reserved_bytes: 0,
            convert_limit: Duration::from_secs(3600),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it open.
    #[error("image store {0} is in use by another process; stop that one, or choose another state directory")]
    InUse(PathBuf),
    /// Its file system is missing.
    #[error("image store {0} has to be a mount point and is none; mount its file system, or clear must_be_mounted")]
    NotMounted(PathBuf),
    /// Another directory is in its place.
    #[error(
        "{root} is not the image store that was there before; mount the file system that has it, or remove {remembered} to begin \
         anew with what is there"
    )]
    Stranger {
        /// Where the store was.
        root: PathBuf,
        /// The file that has its identity.
        remembered: PathBuf,
    },
    /// A file of it cannot be worked on.
    #[error("cannot {action} {path} of the image store")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What opening found left over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Imports and removals that were cut off, and are cleaned away now.
    pub removed: u64,
    /// Whole or partial layers, and beginnings of disks, that the next import can use.
    pub kept_blobs: u64,
    /// Images whose files are not what they should be, with the reason. They are not listed and not used; remove them.
    pub damaged: Vec<(String, String)>,
}

/// Why an image cannot be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such image.
    #[error("no image {0} in the store; pull it first")]
    NotFound(ImageDigest),
    /// Its files are not what they should be.
    #[error("image {digest} is damaged ({problem}); remove it and pull it again")]
    Damaged {
        /// The image.
        digest: ImageDigest,
        /// What is wrong.
        problem: String,
    },
    /// It does not bring this file.
    #[error("image {digest} has no {part}")]
    NoSuchPart {
        /// The image.
        digest: ImageDigest,
        /// `kernel` or `initrd`.
        part: &'static str,
    },
    /// The store is not there at the moment.
    #[error(
        "image store {store} is not available: {problem}; its images can be used again when its file system is back"
    )]
    Unavailable {
        /// Which.
        store: StoreName,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be worked on.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// A stable name for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "store_no_image",
            Self::Damaged { .. } => "store_damaged",
            Self::NoSuchPart { .. } => "store_no_part",
            Self::Unavailable { .. } => "store_unavailable",
            Self::Io { .. } => "io",
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// What a store occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Disk space of sealed images, bytes.
    pub images_bytes: u64,
    /// Disk space of whole and partial layers and beginnings of disks, bytes.
    pub blobs_bytes: u64,
    /// Disk space of imports under way, bytes.
    pub imports_bytes: u64,
    /// Bytes the file system still has for this user.
    pub free_bytes: u64,
}

/// A store of images, open; clones of the handle are the same store. Only one process has a store open at a time.
///
/// Methods that are not `async` do a few file operations and may be called from async code, except [`Store::usage`] and
/// [`Store::remove`], which walk and delete files: use a blocking thread where that matters.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    /// Whether its root is there.
    pub(crate) anchor: Anchor,
    made: AtomicU64,
    /// Held while an image appears in the store.
    pub(crate) sealing: Mutex<()>,
    pub(crate) locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Imports that want a blob, by blob.
    pub(crate) wanted: Mutex<HashMap<ImageDigest, usize>>,
    pub(crate) clients: ClientsOfAll,
}

impl Store {
    /// Opens the store under `settings.root`, creating it if it is not there, and clears what a crash left behind.
    pub fn open(settings: Settings) -> Result<(Self, Recovery), OpenError> {
        let (store, opened) = Self::attach(settings);
        opened.map(|recovery| (store, recovery))
    }

    pub(crate) fn new(settings: Settings, anchor: Anchor) -> Self {
        Self(Arc::new(Inner {
            settings,
            anchor,
            made: AtomicU64::new(0),
            sealing: Mutex::default(),
            locks: Mutex::default(),
            wanted: Mutex::default(),
            clients: ClientsOfAll::default(),
        }))
    }

    pub(crate) fn recover(&self) -> io::Result<Recovery> {
        let mut recovery = Recovery::default();
        for path in children(&self.tmp())? {
            match durable::remove_all(&path) {
                Ok(()) => recovery.removed += 1,
                // No reason not to open the store.
                Err(error) => tracing::warn!(path = %path.display(), %error, "a leftover can not be removed"),
            }
        }
        for path in children(&self.partial())? {
            // Without its state nobody can go on with it; and what has a second name is part of an image already.
            if !path.join("state.json").exists() || is_shared(&path)? {
                durable::remove_all(&path)?;
                recovery.removed += 1;
            }
        }
        recovery.kept_blobs = (children(&self.blobs())?.len() + children(&self.partial())?.len()) as u64;
        for (name, digest) in self.names()? {
            let problem = match digest.map(|digest| self.get(&digest)) {
                None => "its name is no digest".to_owned(),
                Some(Err(StoreError::Damaged { problem, .. })) => problem,
                Some(Err(error)) => error.to_string(),
                // A crash may have come between the rename and the seal of the directory.
                Some(Ok(image)) => {
                    durable::seal_dir(&self.image_dir(&image.digest))?;
                    continue;
                }
            };
            tracing::warn!(image = name, problem, "a damaged image is in the store");
            recovery.damaged.push((name, problem));
        }
        Ok(recovery)
    }

    /// All sound images, oldest first.
    pub fn list(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let names = self.names().map_err(StoreError::io("list", &self.images()))?;
        let mut images = Vec::new();
        for digest in names.into_iter().filter_map(|(_, digest)| digest) {
            match self.get(&digest) {
                Ok(image) => images.push(image),
                // Damage was reported when the store was opened; a removal may have come between.
                Err(StoreError::Damaged { .. } | StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| (a.imported_at_s, &a.digest).cmp(&(b.imported_at_s, &b.digest)));
        Ok(images)
    }

    /// One image; checks that its files are there in full length.
    pub fn get(&self, digest: &ImageDigest) -> Result<ImageRecord, StoreError> {
        let dir = self.image_dir(digest);
        let path = dir.join(record::FILE_NAME);
        let damaged = |problem: String| StoreError::Damaged {
            digest: digest.clone(),
            problem,
        };
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if dir.exists() => damaged("manifest.json is missing".to_owned()),
            io::ErrorKind::NotFound => StoreError::NotFound(digest.clone()),
            _ => StoreError::io("read", &path)(error),
        })?;
        let image = ImageRecord::from_json(&bytes).map_err(|error| damaged(format!("manifest.json: {error}")))?;
        if image.digest != *digest {
            return Err(damaged(format!("manifest.json is of {}", image.digest)));
        }
        let kernel = image.kernel.as_ref().map(|file| (KERNEL, file.size_bytes));
        let initrd = image.initrd.as_ref().map(|file| (INITRD, file.size_bytes));
        let parts = [
            Some((image.disk.format.file_name(), image.disk.file_bytes)),
            kernel,
            initrd,
        ];
        for (name, length) in parts.into_iter().flatten() {
            match dir.join(name).metadata() {
                Ok(metadata) if metadata.len() == length => {}
                Ok(metadata) => return Err(damaged(format!("{name} has {} of {length} bytes", metadata.len()))),
                Err(error) => return Err(damaged(format!("{name}: {error}"))),
            }
        }
        Ok(image)
    }

    /// The disk, for reading.
    pub fn open_disk(&self, digest: &ImageDigest) -> Result<File, StoreError> {
        let image = self.get(digest)?;
        self.open_part(digest, image.disk.format.file_name())
    }

    /// Where the disk of an image is, which may be gone. It is never opened for writing; images of volumes name it as their
    /// backing file. Its format is told by [`ImageRecord::disk`].
    pub fn disk_path(&self, digest: &ImageDigest) -> PathBuf {
        let dir = self.image_dir(digest);
        let qcow2 = dir.join(DiskFormat::Qcow2.file_name());
        if qcow2.exists() { qcow2 } else { dir.join(DISK) }
    }

    /// What it is called.
    pub fn name(&self) -> &StoreName {
        &self.0.settings.name
    }

    /// What was decided about it.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The kernel, for reading.
    pub fn open_kernel(&self, digest: &ImageDigest) -> Result<File, StoreError> {
        if self.get(digest)?.kernel.is_none() {
            let digest = digest.clone();
            return Err(StoreError::NoSuchPart { digest, part: KERNEL });
        }
        self.open_part(digest, KERNEL)
    }

    /// The initrd, for reading.
    pub fn open_initrd(&self, digest: &ImageDigest) -> Result<File, StoreError> {
        if self.get(digest)?.initrd.is_none() {
            let digest = digest.clone();
            return Err(StoreError::NoSuchPart { digest, part: INITRD });
        }
        self.open_part(digest, INITRD)
    }

    fn open_part(&self, digest: &ImageDigest, name: &str) -> Result<File, StoreError> {
        let path = self.image_dir(digest).join(name);
        File::open(&path).map_err(StoreError::io("open", &path))
    }

    /// Removes an image, also a damaged one. Disks cloned from it and files opened from it stay as they are.
    pub fn remove(&self, digest: &ImageDigest) -> Result<(), StoreError> {
        self.check_writable()?;
        let dir = self.image_dir(digest);
        if !dir.exists() {
            return Err(StoreError::NotFound(digest.clone()));
        }
        let io = |action| StoreError::io(action, &dir);
        let open = Permissions::from_mode(0o700);
        std::fs::set_permissions(&dir, open).map_err(io("unseal"))?;
        let grave = self.fresh_tmp("removed");
        std::fs::rename(&dir, &grave).map_err(io("remove"))?;
        durable::sync_dir(&self.images()).map_err(io("remove"))?;
        durable::remove_all(&grave).map_err(io("remove"))
    }

    /// Disk space of an image, bytes. Blocks shortly.
    pub fn image_bytes(&self, digest: &ImageDigest) -> Result<u64, StoreError> {
        self.get(digest)?;
        let dir = self.image_dir(digest);
        occupied(&dir).map_err(StoreError::io("measure", &dir))
    }

    /// What the store occupies.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let size = |path: PathBuf| occupied(&path).map_err(StoreError::io("measure", &path));
        Ok(Usage {
            images_bytes: size(self.images())?,
            blobs_bytes: size(self.blobs())? + size(self.partial())?,
            imports_bytes: size(self.tmp())?,
            free_bytes: self
                .free_bytes()
                .map_err(StoreError::io("measure", &self.0.settings.root))?,
        })
    }

    /// Whether so many bytes can be written and leave what stays free. An error shows where it is written.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let needed = bytes.saturating_add(self.0.settings.reserved_bytes);
        self.free_bytes().map_or(true, |free| free >= needed)
    }

    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        durable::free_bytes(&self.0.settings.root)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.settings.root.join("images/sha256")
    }

    pub(crate) fn image_dir(&self, digest: &ImageDigest) -> PathBuf {
        self.images().join(digest.hex())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.settings.root.join("blobs")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.0.settings.root.join("partial")
    }

    fn tmp(&self) -> PathBuf {
        self.0.settings.root.join("tmp")
    }

    /// A path under `tmp/` nothing else uses.
    pub(crate) fn fresh_tmp(&self, what: &str) -> PathBuf {
        loop {
            let number = self.0.made.fetch_add(1, Ordering::Relaxed);
            let path = self.tmp().join(format!("{what}-{number}"));
            // A leftover that could not be removed may be called so.
            if path.symlink_metadata().is_err() {
                return path;
            }
        }
    }

    /// Waits for the lock called `name`.
    pub(crate) async fn lock(&self, name: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(name).or_default())
        };
        lock.lock_owned().await
    }

    fn names(&self) -> io::Result<Vec<(String, Option<ImageDigest>)>> {
        let name = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let digest = ImageDigest::from_hex(&name);
            (name, digest)
        };
        Ok(children(&self.images())?.into_iter().map(name).collect())
    }
}

/// Whether a file in this directory has another name elsewhere.
fn is_shared(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    for path in children(dir)? {
        let metadata = path.symlink_metadata()?;
        if metadata.is_file() && metadata.nlink() > 1 {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
}

/// Disk space of a file, or of a directory and all below it; what vanishes meanwhile counts nothing.
pub(crate) fn occupied(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut sum = metadata.blocks() * 512;
    if metadata.is_dir() {
        for child in children(path)? {
            sum += occupied(&child)?;
        }
    }
    Ok(sum)
}
