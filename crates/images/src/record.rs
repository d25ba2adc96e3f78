//! `manifest.json` of a sealed image.
//!
//! Its own format, not the registry's: `"version": 1` and the fields of [`ImageRecord`]. A reader refuses a version it does not
//! know; fields are only added with a default, or the version is raised.

use serde::{Deserialize, Serialize};

use crate::{DiskFormat, ImageDigest};

/// Name inside an image's directory.
pub(crate) const FILE_NAME: &str = "manifest.json";
/// The version this crate writes and the only one it reads.
const VERSION: u32 = 1;

/// What the store knows of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// Digest of the OCI image manifest: the image's name in the store.
    pub digest: ImageDigest,
    /// Digest of the OCI index the reference led to, if it led to one.
    pub index_digest: Option<ImageDigest>,
    /// The normalised reference it was first pulled by.
    pub reference: String,
    /// The disk.
    pub disk: DiskRecord,
    /// The kernel, if the image brings one.
    pub kernel: Option<FileRecord>,
    /// The initrd, if the image brings one.
    pub initrd: Option<FileRecord>,
    /// Default kernel command line, if the image brings one.
    pub cmdline: Option<String>,
    /// When it was sealed, seconds since the epoch.
    pub imported_at_s: u64,
}

/// The disk of an image; stored as `disk.raw`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// Path in the container image, without the leading slash.
    pub source_path: String,
    /// What it was in the container image.
    pub source_format: DiskFormat,
    /// Size in the container image, bytes.
    pub source_bytes: u64,
    /// Size a guest sees, bytes: the length of `disk.raw`; a multiple of 512.
    pub virtual_bytes: u64,
}

/// A kernel or initrd; stored as `kernel` or `initrd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Path in the container image, without the leading slash.
    pub source_path: String,
    /// Length, bytes.
    pub size_bytes: u64,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    image: &'a ImageRecord,
}

#[derive(Deserialize)]
struct Read {
    image: ImageRecord,
}

impl ImageRecord {
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&Written {
            version: VERSION,
            image: self,
        })
    }

    /// Reads a record; the error says what is wrong.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let VersionOnly { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!(
                "version {version} is not {VERSION}, the only one this program reads"
            ));
        }
        let read: Read = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(read.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ImageRecord {
        ImageRecord {
            digest: ImageDigest::of(b"x"),
            index_digest: None,
            reference: "docker.io/library/x:latest".into(),
            disk: DiskRecord {
                source_path: "disk/x.qcow2".into(),
                source_format: DiskFormat::Qcow2,
                source_bytes: 7,
                virtual_bytes: 512,
            },
            kernel: None,
            initrd: Some(FileRecord {
                source_path: "boot/initrd".into(),
                size_bytes: 3,
            }),
            cmdline: Some("quiet".into()),
            imported_at_s: 9,
        }
    }

    #[test]
    fn survives_a_round_trip_and_refuses_what_it_does_not_know() {
        let json = record().to_json().unwrap();
        assert_eq!(ImageRecord::from_json(&json), Ok(record()));
        let text = String::from_utf8(json).unwrap();
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(
            ImageRecord::from_json(newer.as_bytes())
                .unwrap_err()
                .contains("version 2")
        );
        let odd = text.replace("\"cmdline\"", "\"cmdlime\"");
        assert!(ImageRecord::from_json(odd.as_bytes()).is_err());
        assert!(ImageRecord::from_json(b"{").is_err());
    }
}
