//! The store of sealed images.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image_sources::{AddressPolicy, Limits};
use tokio::sync::OwnedMutexGuard;

use crate::anchor::Anchor;
use crate::registry_agents::{RegistryAgents, registry_policy};
use crate::{
    DiskFormat, ImageDigest, ImageRecord, OpenError, Recovery, StoreError, StoreName, damage, durable, record,
};

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
    /// Where registries may be, and where they may lead to. Those of `insecure_registries` may be on this host. Default
    /// [`registry_policy`].
    pub registry_policy: AddressPolicy,
    /// How long a registry is waited for, and how slow it may be; how often a fetch is tried again is not among it. Default as for
    /// the web.
    pub registry_limits: Limits,
    /// Certificate authorities that registries must be vouched for by, PEM. Default those of the host.
    pub registry_authorities_pem: Option<Vec<u8>>,
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
    /// How long the file system may take to answer before nobody waits for it any more. Default 10 s: beyond what a busy disk takes,
    /// and below what a network file system tries again for.
    pub answer_within: Duration,
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
            registry_policy: registry_policy(),
            registry_limits: Limits::default(),
            registry_authorities_pem: None,
            qemu_img: None,
            checkpoint_bytes: 64 << 20,
            max_disk_bytes: 256 << 30,
            reserved_bytes: 0,
            convert_limit: Duration::from_secs(3600),
            answer_within: Duration::from_secs(10),
        }
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
/// Methods that are not `async` do file operations, and block for as long as the file system does, which one on a network may do for
/// ever: [`Store::ask`] does not wait that long.
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
    pub(crate) agents: RegistryAgents,
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
            agents: RegistryAgents::default(),
        }))
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

    /// One image; checks that its files are there in full length, and that none of them is known to be damaged.
    pub fn get(&self, digest: &ImageDigest) -> Result<ImageRecord, StoreError> {
        let image = self.get_unmarked(digest)?;
        let dir = self.image_dir(digest);
        match damage::mark_of(&dir).map_err(StoreError::io("read", &dir))? {
            None => Ok(image),
            Some(problem) => Err(StoreError::Damaged {
                digest: digest.clone(),
                problem,
            }),
        }
    }

    /// As [`Self::get`], whatever a mark says.
    pub(crate) fn get_unmarked(&self, digest: &ImageDigest) -> Result<ImageRecord, StoreError> {
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

    pub(crate) fn tmp(&self) -> PathBuf {
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

    /// What is under `images/`, and the digests that names are.
    pub(crate) fn names(&self) -> io::Result<Vec<(String, Option<ImageDigest>)>> {
        let name = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let digest = ImageDigest::from_hex(&name);
            (name, digest)
        };
        Ok(children(&self.images())?.into_iter().map(name).collect())
    }
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
