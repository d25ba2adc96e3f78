//! What a crash left in a store, cleared when it opens.

use std::io;
use std::path::Path;

use crate::store::children;
use crate::{Store, StoreError, durable};

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

impl Store {
    /// Clears it.
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
        self.drop_aged();
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
