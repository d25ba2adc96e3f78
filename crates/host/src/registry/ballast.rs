//! Space put aside for the moment when the disk is full.
//!
//! Guests fill file systems. Then nothing could be written down any more, so no machine could be stopped and none deleted,
//! which is what would make room. So the registry keeps a file that it gives up when the database finds the disk full: the
//! change that failed succeeds when it is asked for again. The file comes back when there is room.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::limits;

/// Bytes put aside: thousands of small changes in the write-ahead log.
const BALLAST_BYTES: u64 = 4 << 20;
/// Bytes that must be free before they are put aside again.
const ROOM_BYTES: u64 = 64 << 20;

/// The file, which may be there or not.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    held: bool,
}

impl Ballast {
    /// Beside the registry's file.
    pub(super) fn beside(registry: &Path) -> Self {
        let path = registry.with_extension("ballast");
        let held = path.exists();
        let mut ballast = Self { path, held };
        ballast.take();
        ballast
    }

    /// Puts the space aside if it is not and there is room.
    pub(super) fn take(&mut self) {
        if self.held {
            return;
        }
        let room = self.path.parent().map_or(Ok(0), limits::free_bytes);
        if !room.is_ok_and(|bytes| bytes >= ROOM_BYTES) {
            return;
        }
        match self.fill() {
            Ok(()) => self.held = true,
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "no space can be put aside"),
        }
    }

    fn fill(&self) -> io::Result<()> {
        let file = File::create(&self.path)?;
        Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?)
    }

    /// Gives the space up; true if there was any.
    pub(super) fn drop_now(&mut self) -> bool {
        self.held = false;
        std::fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_taken_given_up_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("karat.ballast");
        let mut ballast = Ballast::beside(&dir.path().join("karat.db"));
        assert_eq!(file.metadata().unwrap().len(), BALLAST_BYTES);
        assert!(ballast.drop_now() && !file.exists());
        assert!(!ballast.drop_now());
        ballast.take();
        assert!(file.exists());
    }
}
