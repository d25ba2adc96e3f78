//! Whether a store is what its records say: one image read again, or all of it.

use std::collections::BTreeSet;

use crate::seal::hash_file;
use crate::store::{INITRD, KERNEL, children, occupied};
use crate::{DiskFormat, ImageDigest, ImageRecord, Store, StoreError, damage, partial, record};

/// What an examination found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Something under `images/` that is no image.
    Stray {
        /// Its name.
        name: String,
    },
    /// An image that is not what its record says.
    Damaged {
        /// Which.
        digest: ImageDigest,
        /// What is wrong.
        problem: String,
    },
    /// A file beside an image that belongs to none.
    Extra {
        /// Which image.
        digest: ImageDigest,
        /// Name of the file.
        name: String,
    },
    /// An image that somebody refers to and that is not here.
    Missing {
        /// Which.
        digest: ImageDigest,
    },
    /// An image that nobody refers to.
    Unreferenced {
        /// Which.
        digest: ImageDigest,
    },
    /// The beginning of an image, that an import can go on with for a week.
    Beginning {
        /// Its name below `partial/`.
        name: String,
        /// Disk space, bytes.
        bytes: u64,
        /// Since it was last gone on with, seconds.
        age_s: u64,
    },
    /// Something an import left that is under way no more.
    Leftover {
        /// Its name below `tmp/` or `blobs/`.
        name: String,
    },
}

impl Finding {
    /// A stable name for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Stray { .. } => "stray",
            Self::Damaged { .. } => "damaged",
            Self::Extra { .. } => "extra_file",
            Self::Missing { .. } => "missing",
            Self::Unreferenced { .. } => "unreferenced",
            Self::Beginning { .. } => "beginning",
            Self::Leftover { .. } => "leftover",
        }
    }
}

/// How an examination is done.
#[derive(Debug, Clone, Default)]
pub struct Examination {
    /// Images that somebody refers to; none: references are not looked at.
    pub referenced: Option<BTreeSet<ImageDigest>>,
    /// Read all bytes and compare digests, not only lengths.
    pub read_all: bool,
}

impl Store {
    /// Examines the whole store, while nobody imports: what an import under way has there counts as left over. Blocks. `stop` is
    /// asked between images and while they are read; true ends it with what was found so far.
    ///
    /// # Errors
    /// The store is not available, or cannot be read.
    pub fn fsck(&self, how: &Examination, stop: &dyn Fn() -> bool) -> Result<Vec<Finding>, StoreError> {
        self.check_available()?;
        let mut findings = Vec::new();
        let mut here = BTreeSet::new();
        let images = self.images();
        for path in children(&images).map_err(StoreError::io("list", &images))? {
            if stop() {
                return Ok(findings);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(digest) = ImageDigest::from_hex(&name) else {
                findings.push(Finding::Stray { name });
                continue;
            };
            here.insert(digest.clone());
            match self.examine(&digest, how.read_all, stop) {
                Ok(_) => {}
                Err(StoreError::Damaged { digest, problem }) => findings.push(Finding::Damaged { digest, problem }),
                // Removed meanwhile.
                Err(StoreError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            }
            self.extras(&digest, &mut findings)?;
        }
        if let Some(referenced) = &how.referenced {
            let missing = referenced.difference(&here).cloned();
            findings.extend(missing.map(|digest| Finding::Missing { digest }));
            let unreferenced = here.difference(referenced).cloned();
            findings.extend(unreferenced.map(|digest| Finding::Unreferenced { digest }));
        }
        let partial = self.partial();
        for path in children(&partial).map_err(StoreError::io("list", &partial))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            findings.push(Finding::Beginning {
                name: format!("partial/{name}"),
                bytes: occupied(&path).map_err(StoreError::io("measure", &path))?,
                age_s: partial::age(&path).unwrap_or_default().as_secs(),
            });
        }
        for part in ["tmp", "blobs"] {
            let dir = self.settings().root.join(part);
            for path in children(&dir).map_err(StoreError::io("list", &dir))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let name = format!("{part}/{name}");
                findings.push(Finding::Leftover { name });
            }
        }
        Ok(findings)
    }

    /// Reads an image again and compares it with its record; one found damaged is marked, so that it is used no more and the next
    /// import of it brings its bytes anew. Blocks. `stop` is asked now and then; true ends it with an error.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not what it was; an image of version 1 has no digest to compare with, so that only its
    /// lengths count.
    pub fn verify(&self, digest: &ImageDigest, stop: &dyn Fn() -> bool) -> Result<ImageRecord, StoreError> {
        self.check_available()?;
        self.examine(digest, true, stop)
    }

    fn examine(
        &self,
        digest: &ImageDigest,
        read_all: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<ImageRecord, StoreError> {
        // What is marked is read again: a verification that ended badly may have met a fault of the machine and not of the disk.
        let image = self.get_unmarked(digest)?;
        if !read_all {
            return self.get(digest);
        }
        let kernel = image.kernel.as_ref().and_then(|file| file.digest.as_ref());
        let initrd = image.initrd.as_ref().and_then(|file| file.digest.as_ref());
        let parts = [
            (image.disk.format.file_name(), image.disk.digest.as_ref()),
            (KERNEL, kernel),
            (INITRD, initrd),
        ];
        let dir = self.image_dir(digest);
        for (name, expected) in parts {
            let Some(expected) = expected else { continue };
            let path = dir.join(name);
            let found = hash_file(&path, stop).map_err(StoreError::io("read", &path))?;
            if found != *expected {
                let problem = format!("{name} has digest {found} instead of {expected}");
                self.mark_damaged(digest, &problem);
                let digest = digest.clone();
                return Err(StoreError::Damaged { digest, problem });
            }
        }
        self.clear_mark(digest).map_err(StoreError::io("unmark", &dir))?;
        Ok(image)
    }

    fn extras(&self, digest: &ImageDigest, findings: &mut Vec<Finding>) -> Result<(), StoreError> {
        let known = [
            record::FILE_NAME,
            DiskFormat::Raw.file_name(),
            DiskFormat::Qcow2.file_name(),
            KERNEL,
            INITRD,
            damage::MARK,
        ];
        let dir = self.image_dir(digest);
        for path in children(&dir).map_err(StoreError::io("list", &dir))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !known.contains(&name.as_str()) {
                let digest = digest.clone();
                findings.push(Finding::Extra { digest, name });
            }
        }
        Ok(())
    }
}
