//! Copies of disks on their way to become images: files that nobody keeps.

use std::path::{Path, PathBuf};

/// A file that goes with this.
pub(crate) struct Part(pub(crate) PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "the copy of a disk remains until the next start");
        }
    }
}

/// Removes those that an earlier daemon left in their directory. Blocks.
pub(crate) fn clear(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.for_each(|entry| drop(Part(entry.path())));
}
