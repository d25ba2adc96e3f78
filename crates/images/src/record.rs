//! `manifest.json` of a sealed image.
//!
//! Its own format, not the registry's: `"version": 2` and the fields of [`ImageRecord`]. Version 1 is read too: its images have a
//! raw disk, no digest of it, and are named by their manifest in a registry. A reader refuses a version it does not know; fields are
//! only added with a default, or the version is raised.

use serde::{Deserialize, Serialize};

use crate::{DiskFormat, ImageDigest, Origin, SourceFormat};

/// What the list of an image's parts begins with, whose digest is the image's name.
const PARTS: &str = "karat image of parts, version 1\n";

/// Name inside an image's directory.
pub(crate) const FILE_NAME: &str = "manifest.json";
/// The version this crate writes.
const VERSION: u32 = 2;
/// The oldest version this crate reads.
const OLDEST: u32 = 1;

/// What the store knows of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// The image's name in the store, made as [the crate](crate) says. Images of version 1 have the digest of their OCI image
    /// manifest instead.
    pub digest: ImageDigest,
    /// Digest of the OCI index the reference led to, if it led to one.
    pub index_digest: Option<ImageDigest>,
    /// Where it was first imported from: a normalised reference, or an address without secrets.
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
    /// What its source was when it was first imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The disk of an image; stored as `disk.raw` or `disk.qcow2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// Path in the container image or archive, without the leading slash; empty where the source was the disk itself.
    pub source_path: String,
    /// What it was in its source.
    pub source_format: SourceFormat,
    /// Size in its source without compression, bytes.
    pub source_bytes: u64,
    /// Size a guest sees, bytes: the length of `disk.raw`; a multiple of 512 there.
    pub virtual_bytes: u64,
    /// What it is here.
    #[serde(default)]
    pub format: DiskFormat,
    /// Length of the sealed file, bytes.
    #[serde(default)]
    pub file_bytes: u64,
    /// Digest of the sealed file; none for images of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ImageDigest>,
}

/// A kernel or initrd; stored as `kernel` or `initrd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Path in the container image, without the leading slash.
    pub source_path: String,
    /// Length, bytes.
    pub size_bytes: u64,
    /// Its digest; none for images of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ImageDigest>,
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
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(format!(
                "version {version} is none of {OLDEST} to {VERSION}, which this program reads"
            ));
        }
        let Read { mut image } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version == OLDEST {
            image.disk.file_bytes = image.disk.virtual_bytes;
        }
        Ok(image)
    }

    /// The name of an image with these parts. That of a disk alone is the digest of its sealed file, so that `sha256sum` tells it;
    /// where boot files or a command line come with it, the digest of a list of all of them.
    pub(crate) fn name_of(
        disk: &ImageDigest,
        kernel: Option<&FileRecord>,
        initrd: Option<&FileRecord>,
        cmdline: Option<&str>,
    ) -> ImageDigest {
        if kernel.is_none() && initrd.is_none() && cmdline.is_none() {
            return disk.clone();
        }
        let mut list = format!("{PARTS}disk {disk}\n");
        for (part, file) in [("kernel", kernel), ("initrd", initrd)] {
            if let Some(digest) = file.and_then(|file| file.digest.as_ref()) {
                list.push_str(&format!("{part} {digest}\n"));
            }
        }
        if let Some(cmdline) = cmdline {
            list.push_str(&format!("cmdline {cmdline}\n"));
        }
        // No disk has this name: a raw one is whole sectors long, which the list is not, and a qcow2 begins otherwise.
        if list.len().is_multiple_of(512) {
            list.push('\n');
        }
        ImageDigest::of(list.as_bytes())
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
                source_format: SourceFormat::Vmdk,
                source_bytes: 7,
                virtual_bytes: 512,
                format: DiskFormat::Qcow2,
                file_bytes: 70_000,
                digest: Some(ImageDigest::of(b"disk")),
            },
            kernel: None,
            initrd: Some(FileRecord {
                source_path: "boot/initrd".into(),
                size_bytes: 3,
                digest: Some(ImageDigest::of(b"abc")),
            }),
            cmdline: Some("quiet".into()),
            imported_at_s: 9,
            origin: Some(Origin::Registry {
                digest: ImageDigest::of(b"manifest"),
            }),
        }
    }

    #[test]
    fn survives_a_round_trip_and_refuses_what_it_does_not_know() {
        let json = record().to_json().unwrap();
        assert_eq!(ImageRecord::from_json(&json), Ok(record()));
        let text = String::from_utf8(json).unwrap();
        let newer = text.replace("\"version\": 2", "\"version\": 3");
        assert!(
            ImageRecord::from_json(newer.as_bytes())
                .unwrap_err()
                .contains("version 3")
        );
        let odd = text.replace("\"cmdline\"", "\"cmdlime\"");
        assert!(ImageRecord::from_json(odd.as_bytes()).is_err());
        assert!(ImageRecord::from_json(b"{").is_err());
    }
    #[test]
    fn version_1_is_read_as_what_it_was() {
        let text = r#"{"version": 1, "image": {
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "index_digest": null, "reference": "q.io/x:1",
            "disk": {"source_path": "disk/x", "source_format": "qcow2", "source_bytes": 9, "virtual_bytes": 1024},
            "kernel": {"source_path": "boot/vmlinuz", "size_bytes": 6},
            "initrd": null, "cmdline": null, "imported_at_s": 5}}"#;
        let image = ImageRecord::from_json(text.as_bytes()).unwrap();
        assert_eq!((image.disk.format, image.disk.file_bytes), (DiskFormat::Raw, 1024));
        assert_eq!((image.disk.digest, image.origin), (None, None));
    }

    #[test]
    fn a_disk_alone_has_its_own_digest_for_a_name_and_every_part_counts() {
        let disk = ImageDigest::of(b"disk");
        let file = |bytes: &[u8]| FileRecord {
            source_path: String::new(),
            size_bytes: bytes.len() as u64,
            digest: Some(ImageDigest::of(bytes)),
        };
        let (one, two) = (file(b"1"), file(b"2"));
        assert_eq!(ImageRecord::name_of(&disk, None, None, None), disk);
        let names = std::collections::BTreeSet::from([
            ImageRecord::name_of(&disk, Some(&one), None, None),
            ImageRecord::name_of(&disk, None, Some(&one), None),
            ImageRecord::name_of(&disk, Some(&one), Some(&two), None),
            ImageRecord::name_of(&disk, Some(&two), Some(&one), None),
            ImageRecord::name_of(&disk, None, None, Some("quiet")),
            disk.clone(),
        ]);
        assert_eq!(names.len(), 6);
        // A disk that is made of such a list gets another name, whatever length the list has.
        for length in 0..1024 {
            let cmdline = "x".repeat(length);
            let mut made = format!("{PARTS}disk {disk}\ncmdline {cmdline}\n").into_bytes();
            made.resize(made.len().next_multiple_of(512), 0);
            let name = ImageRecord::name_of(&disk, None, None, Some(&cmdline));
            assert!(name != ImageDigest::of(&made), "{length}");
        }
    }
}
