//! What an import is asked for, and what it comes to.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use image_formats::Expectations;
use image_sources::{FileSource, S3Source, Source, WebSource};
use image_trust::policy::{TrustPolicy, Verdict};
use image_trust::x509::ImageSignature;
use image_trust::{DigestSet, Pinned};

use crate::{ImageDigest, ImageRecord, LocalDisk, Origin, Reference, Store, StoreName};

/// Where an image comes from.
pub enum ImportSource {
    /// A container disk in a registry.
    Registry {
        /// Which.
        reference: Reference,
    },
    /// An object on a web server.
    Web(WebSource),
    /// An object in an object store.
    S3(S3Source),
    /// A local file.
    File(FileSource),
    /// Bytes that a client sends. Whoever makes the reader sees to it that reading ends when the import is cancelled.
    Upload(Box<dyn Read + Send>),
    /// What is on a disk of this host.
    LocalDisk(LocalDisk),
    /// An image of another store.
    Stored {
        /// Its name.
        digest: ImageDigest,
        /// The store it is in.
        store: Store,
    },
}

impl fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.method(), self.location())
    }
}

impl From<Source> for ImportSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Web(source) => Self::Web(source),
            Source::S3(source) => Self::S3(source),
            Source::File(source) => Self::File(source),
        }
    }
}

impl ImportSource {
    /// The import method as the API names it.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "registry",
            Self::Web(_) => "web-download",
            Self::S3(_) => "s3",
            Self::File(_) => "file",
            Self::Upload(_) => "upload",
            Self::LocalDisk(_) => "snapshot",
            Self::Stored { .. } => "copy",
        }
    }

    /// Where it is, for people and records; without secrets.
    pub fn location(&self) -> String {
        match self {
            Self::Registry { reference } => reference.to_string(),
            Self::Web(source) => source.location(),
            Self::S3(source) => source.location(),
            Self::File(source) => source.path().display().to_string(),
            Self::Upload(_) => "upload".to_owned(),
            Self::LocalDisk(disk) => disk.name.clone(),
            Self::Stored { digest, .. } => digest.to_string(),
        }
    }

    /// As `image-sources` has it, if it is one of its kinds.
    pub(crate) fn object(&self) -> Option<Source> {
        match self {
            Self::Web(source) => Some(Source::Web(source.clone())),
            Self::S3(source) => Some(Source::S3(source.clone())),
            Self::File(source) => Some(Source::File(source.clone())),
            _ => None,
        }
    }
}

/// A sums file that lists the image.
#[derive(Debug, Clone)]
pub struct SumsRequest {
    /// Where it is.
    pub file: Source,
    /// Where its detached signature is; none for one that is clear-signed, or not signed.
    pub signature: Option<Source>,
    /// The name under which the image is listed: see [`image_trust::name_of_url`].
    pub name: String,
}

/// What a request says of the image's bytes.
#[derive(Debug, Clone, Default)]
pub struct RequestedProof {
    /// Digests they must have, all of them. A compressed image may be pinned as it is sent or as it is unpacked.
    pub pinned: Vec<Pinned>,
    /// A sums file, whose entry counts in the same way.
    pub sums: Option<SumsRequest>,
    /// The image's signature properties.
    pub x509: Option<ImageSignature>,
}

/// An import.
#[derive(Debug)]
pub struct ImportRequest {
    /// Where the image comes from.
    pub source: ImportSource,
    /// What it has to be: claimed format, formats that are taken, bounds. The store's own bounds hold as well.
    pub expected: Expectations,
    /// What proves that it is right.
    pub evidence: RequestedProof,
    /// What has to be proved.
    pub trust: Arc<TrustPolicy>,
    /// Stores it is to be in, see [`crate::Stores::import`]; [`Store::import`] does not look at them.
    pub stores: Vec<StoreName>,
}

impl ImportRequest {
    /// The same once more; none for what a client sends, and for a disk that is held still meanwhile.
    pub(crate) fn again(&self) -> Option<Self> {
        let source = match &self.source {
            ImportSource::Registry { reference } => ImportSource::Registry {
                reference: reference.clone(),
            },
            ImportSource::Web(source) => ImportSource::Web(source.clone()),
            ImportSource::S3(source) => ImportSource::S3(source.clone()),
            ImportSource::File(source) => ImportSource::File(source.clone()),
            ImportSource::Stored { digest, store } => ImportSource::Stored {
                digest: digest.clone(),
                store: store.clone(),
            },
            ImportSource::Upload(_) | ImportSource::LocalDisk(_) => return None,
        };
        Some(Self {
            source,
            expected: self.expected.clone(),
            evidence: self.evidence.clone(),
            trust: Arc::clone(&self.trust),
            stores: self.stores.clone(),
        })
    }
}

/// What an import came to.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The image.
    pub image: ImageRecord,
    /// True if the store had it already.
    pub was_there: bool,
    /// What the source was.
    pub origin: Origin,
    /// Why the image may be used; never a refusal, which is an error.
    pub verdict: Verdict,
    /// Digests of the bytes as they came, after decompression and before conversion; of the disk for a container disk. None if
    /// nothing came, because the store had it.
    pub digests: Option<DigestSet>,
}
