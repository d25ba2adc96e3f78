//! What an operator decides about images.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use image_sources::{AddressPolicy, S3Server};
use image_trust::policy::TrustPolicy;
use images::{CloneWay, StoreName};

/// Formats of disks that can be taken.
pub const DISK_FORMATS: [&str; 8] = ["raw", "qcow2", "iso", "vmdk", "vhd", "vhdx", "vdi", "ova"];

/// Images: where they may come from, what has to be proved of them, and where they are kept.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Methods of import that are enabled.
    pub methods: Vec<ImportMethod>,
    /// Most space that images in the state directory may take, bytes.
    pub quota_bytes: Option<u64>,
    /// Further stores.
    pub stores: Vec<StoreConfig>,
    /// Copies of images of those that are slow.
    pub cache: CacheConfig,
    /// Directories whose files may be imported.
    pub file_roots: Vec<PathBuf>,
    /// Where web downloads may connect to.
    pub web: AddressPolicy,
    /// Where registries may be, and may lead to.
    pub registry: AddressPolicy,
    /// Certificate authorities that servers must be vouched for by, PEM; those of the host where none are named.
    pub authorities_pem: Option<Vec<u8>>,
    /// Object stores; the first is asked unless another is named.
    pub s3: Vec<S3Config>,
    /// Formats of disks that are taken, of [`DISK_FORMATS`].
    pub disk_formats: Vec<String>,
    /// What has to be proved.
    pub trust: Arc<TrustPolicy>,
    /// Uploads that can be gone on with.
    pub uploads: UploadConfig,
}

/// Uploads that can be gone on with, as far as an operator decides about them.
#[derive(Debug, Clone, Copy)]
pub struct UploadConfig {
    /// Most bytes that all of them may have in all, once they are whole.
    pub quota_bytes: Option<u64>,
    /// How long one is kept that nobody goes on with, hours.
    pub kept_hours: u32,
}

/// A store of images beside the one in the state directory.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Its name.
    pub name: StoreName,
    /// Its directory.
    pub path: PathBuf,
    /// Most space that its images may take, bytes.
    pub quota_bytes: Option<u64>,
    /// Whether it has to be the root of a mounted file system.
    pub must_be_mounted: bool,
    /// Whether it is slow: machines and volumes are made from copies of its images in the default store.
    pub cached: bool,
    /// How root disks are made from its images, if not as from those of the default store.
    pub root_disks: Option<CloneWay>,
}

/// Copies of images of slow stores, in the default store.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Most space that they may take, bytes.
    pub max_bytes: u64,
    /// How often what is queued is fetched.
    pub prefetch_interval: Duration,
    /// How often what is too much is removed.
    pub prune_interval: Duration,
}

/// An object store that images are imported from.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// What requests call it.
    pub name: String,
    /// Where it is, and who asks.
    pub server: S3Server,
}

/// A way for data to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportMethod {
    /// Container disks of registries.
    Registry,
    /// Files of web servers.
    WebDownload,
    /// Objects of object stores.
    S3,
    /// Files of this host.
    File,
    /// What clients send.
    Upload,
    /// Disks of machines, and volumes.
    Snapshot,
    /// Images of other stores.
    Copy,
}

impl ImportMethod {
    /// Every method.
    pub const ALL: [Self; 7] = [
        Self::Registry,
        Self::WebDownload,
        Self::S3,
        Self::File,
        Self::Upload,
        Self::Snapshot,
        Self::Copy,
    ];

    /// As the API and the configuration write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::WebDownload => "web-download",
            Self::S3 => "s3",
            Self::File => "file",
            Self::Upload => "upload",
            Self::Snapshot => "snapshot",
            Self::Copy => "copy",
        }
    }
}
