//! The end of an import, wherever its parts came from: they get their name, are sealed, and it is told what came in.

use image_trust::DigestSet;
use image_trust::policy::Verdict;

use crate::seal::{Sealing, now_s};
use crate::{DiskRecord, FileRecord, ImageDigest, ImageRecord, ImportError, Imported, Origin};

/// What is in a workspace and becomes an image.
pub(crate) struct Parts {
    /// The disk.
    pub(crate) disk: DiskRecord,
    /// Digest of its file.
    pub(crate) disk_digest: ImageDigest,
    /// Digest of the list of platforms that led to it.
    pub(crate) index_digest: Option<ImageDigest>,
    /// The kernel, if there is one.
    pub(crate) kernel: Option<FileRecord>,
    /// The initrd, if there is one.
    pub(crate) initrd: Option<FileRecord>,
    /// The kernel's command line, if there is one.
    pub(crate) cmdline: Option<String>,
}

impl Parts {
    /// A disk with nothing beside it.
    pub(crate) fn of_disk((disk, disk_digest): (DiskRecord, ImageDigest)) -> Self {
        Self {
            disk,
            disk_digest,
            index_digest: None,
            kernel: None,
            initrd: None,
            cmdline: None,
        }
    }
}

/// Where an import came from.
pub(crate) struct Source {
    /// As it was asked for.
    pub(crate) location: String,
    /// As it was found.
    pub(crate) origin: Origin,
}

/// Names and seals `parts`, whose bytes came with these `digests` and were found to be right. Blocks.
pub(crate) fn end(
    sealing: &Sealing<'_>,
    parts: Parts,
    from: Source,
    verdict: Verdict,
    digests: DigestSet,
) -> Result<Imported, ImportError> {
    let Parts {
        disk,
        disk_digest,
        index_digest,
        kernel,
        initrd,
        cmdline,
    } = parts;
    let Source { location, origin } = from;
    let (image, was_there) = sealing.seal(ImageRecord {
        digest: ImageRecord::name_of(&disk_digest, kernel.as_ref(), initrd.as_ref(), cmdline.as_deref()),
        index_digest,
        reference: location,
        disk,
        kernel,
        initrd,
        cmdline,
        imported_at_s: now_s(),
        origin: Some(origin.clone()),
    })?;
    Ok(Imported {
        image,
        was_there,
        origin,
        verdict,
        digests: Some(digests),
    })
}
