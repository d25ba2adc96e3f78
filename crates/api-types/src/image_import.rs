//! How images come in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where data comes from. `GET /v1/images/import-info` lists which methods are enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageImport {
    /// A container disk of an OCI registry.
    Registry {
        /// `registry/repository[:tag][@sha256:…]`.
        reference: String,
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// A file of a web server. One that is packed with gzip, xz, zstd or bzip2 is unpacked.
    WebDownload {
        /// `https://…`.
        url: String,
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// An object of an S3 store.
    S3 {
        /// `s3://bucket/key`.
        url: String,
        /// Which of the configured object stores. Default: the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// A version of the object. Default: the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// A file of this host.
    File {
        /// An absolute path beneath an allowed directory.
        path: String,
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// Bytes that a client sends: recorded by `PUT /v1/images/{image}/data`, and not to be written in a request.
    Upload {
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// What is on a disk of this host at one instant, flattened: a disk of a machine, or a volume. A machine that runs goes on; its disk
    /// is taken as it is when the last of it was copied, as if the power had gone then.
    Snapshot {
        /// Name or id of a machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<String>,
        /// Which of the machine's disks, by its name there. Default: `root`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// Name or id of a volume, where no machine is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
        /// What is asked of it.
        #[serde(default, skip_serializing_if = "ImportOptions::is_empty")]
        options: ImportOptions,
    },
    /// The image as it is, to further stores.
    Copy {
        /// Names of the stores, none of which has it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stores: Vec<String>,
        /// All stores instead; those that have it are left out.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        all_stores: bool,
        /// Whether some may fail. Default: true. Otherwise the copies that were made are taken back when one does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow_failure: Option<bool>,
    },
}

impl ImageImport {
    /// The method as it is written.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "registry",
            Self::WebDownload { .. } => "web-download",
            Self::S3 { .. } => "s3",
            Self::File { .. } => "file",
            Self::Upload { .. } => "upload",
            Self::Snapshot { .. } => "snapshot",
            Self::Copy { .. } => "copy",
        }
    }

    /// What is asked of the data; a copy has nothing to be asked.
    pub const fn options(&self) -> Option<&ImportOptions> {
        match self {
            Self::Registry { options, .. }
            | Self::WebDownload { options, .. }
            | Self::S3 { options, .. }
            | Self::File { options, .. }
            | Self::Snapshot { options, .. }
            | Self::Upload { options } => Some(options),
            Self::Copy { .. } => None,
        }
    }

    /// The same with other options.
    #[must_use]
    pub fn with(mut self, wanted: ImportOptions) -> Self {
        match &mut self {
            Self::Registry { options, .. }
            | Self::WebDownload { options, .. }
            | Self::S3 { options, .. }
            | Self::File { options, .. }
            | Self::Snapshot { options, .. }
            | Self::Upload { options } => *options = wanted,
            Self::Copy { .. } => {}
        }
        self
    }

    /// A container disk of an OCI registry, of which nothing is asked.
    pub fn registry(reference: impl Into<String>) -> Self {
        Self::Registry {
            reference: reference.into(),
            options: ImportOptions::default(),
        }
    }

    /// A file of a web server, of which nothing is asked.
    pub fn web(url: impl Into<String>) -> Self {
        Self::WebDownload {
            url: url.into(),
            options: ImportOptions::default(),
        }
    }

    /// An object of the first configured object store, of which nothing is asked.
    pub fn s3(url: impl Into<String>) -> Self {
        Self::S3 {
            url: url.into(),
            server: None,
            version: None,
            options: ImportOptions::default(),
        }
    }

    /// A file of this host, of which nothing is asked.
    pub fn file(path: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            options: ImportOptions::default(),
        }
    }
}

/// What is asked of data that comes in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportOptions {
    /// Digests that the data must have, all of them: `sha256:…` or `sha512:…`. Packed data may be named as it is sent or as it is
    /// unpacked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<String>,
    /// A file of digests that lists the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<ImageSums>,
    /// Stores it shall be in. Default: the default store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<String>,
    /// All stores instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_stores: bool,
    /// Whether it is enough that one of several stores takes it. Default: true. Otherwise it is in none when one fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_failure: Option<bool>,
}

impl ImportOptions {
    /// Whether nothing is asked.
    pub const fn is_empty(&self) -> bool {
        self.digests.is_empty()
            && self.sums.is_none()
            && self.stores.is_empty()
            && !self.all_stores
            && self.allow_failure.is_none()
    }
}

/// A file of digests, as `SHA256SUMS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSums {
    /// `https://…`.
    pub url: String,
    /// Where its detached OpenPGP signature is. Absent: it is signed within, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_url: Option<String>,
    /// The name under which the data is listed. Default: the last part of its URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Where an image is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePush {
    /// `registry/repository:tag`; the tag is made, or moved.
    pub reference: String,
}

/// What can be imported here, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageImportInfo {
    /// Methods that are enabled.
    pub methods: Vec<String>,
    /// Largest disk an image may have, bytes.
    pub max_disk_bytes: u64,
    /// Stores of images, the default one first.
    #[serde(default)]
    pub stores: Vec<ImageStore>,
    /// Names of the object stores that can be imported from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub s3_servers: Vec<String>,
}

/// A store of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageStore {
    /// Its name.
    pub name: String,
    /// Whether images go there unless another is named.
    pub is_default: bool,
    /// Whether it can be used.
    #[serde(default)]
    pub state: ImageStoreState,
    /// Why it can not be written to, or not be used at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether it is slow: machines and volumes are made from copies in the default store.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// How many images it has. Absent while it is not available, as all that follows but the quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Space that images take, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Space that imports take which are under way or can be gone on with, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imports_bytes: Option<u64>,
    /// Most space that images may take, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Space that its file system has left, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}

/// Whether a store can be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageStoreState {
    /// For everything.
    #[default]
    Ready,
    /// Its images can be read; none comes or goes.
    ReadOnly,
    /// For nothing: its file system is not mounted, or does not answer. It is used again as soon as that is different.
    Unavailable,
}

/// All stores of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageStoreList {
    /// The default one first.
    pub items: Vec<ImageStore>,
}

/// Whether records and stores agree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFsck {
    /// What does not fit; empty where all is well.
    pub findings: Vec<ImageFinding>,
}

/// Something in a store that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFinding {
    /// The store.
    pub store: String,
    /// For programs: `stray`, `damaged`, `extra_file`, `missing`, `unreferenced`, `beginning` or `leftover`.
    pub code: String,
    /// A digest, or the name of a file.
    pub subject: String,
    /// For people.
    pub message: String,
}
