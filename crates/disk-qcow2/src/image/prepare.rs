//! What the image must say of itself before its first change.
//!
//! Unknown autoclear bits are cleared (whoever set them may have data that follows the guest's); bitmaps that track every change
//! are marked as in use, since nobody keeps them up; with lazy refcounts the dirty bit is set. All of it is durable
//! before the change.

use std::sync::atomic::Ordering;

use disk::DiskErrorKind;

use super::fault::Fault;
use super::state::Engine;
use crate::meta::bitmap::{self, Marking};
use crate::meta::extension::BitmapsPointer;
use crate::meta::header::{autoclear, incompatible};
use crate::ops::{File, TablesError, bitmap_directory};

impl Engine {
    /// Before every change; after the first it is one load.
    pub(crate) async fn prepare(&self) -> Result<(), Fault> {
        self.image.check_sound()?;
        if self.image.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        Box::pin(self.prepare_first(Marking::Auto)).await
    }

    /// Before the first change, or one that makes all bitmaps meaningless.
    pub(crate) async fn prepare_first(&self, marking: Marking) -> Result<(), Fault> {
        let mut header = self.image.header.lock().await;
        if self.image.prepared.load(Ordering::Acquire) && marking == Marking::Auto {
            return Ok(());
        }
        // Slices are written whole, and the last cluster of a file may be cut short. A device's stays so, and is not used.
        let whole = self
            .file
            .geometry()
            .size_bytes
            .next_multiple_of(self.image.layout.cluster_bytes());
        match self.cover(&*self.file, whole).await {
            // The file has its length for ever; one that has no room left says so itself.
            Err(Fault::Kind(DiskErrorKind::NoSpace)) => {}
            covered => covered?,
        }
        let mut new = header.clone();
        new.autoclear &= autoclear::KNOWN;
        let counts = new.autoclear & autoclear::BITMAPS != 0;
        if let Some(pointer) = self.image.bitmaps.filter(|_| counts)
            && !self.mark_bitmaps(pointer, marking).await?
        {
            // Nobody can read them: say that they do not count.
            new.autoclear &= !autoclear::BITMAPS;
        }
        if self.image.lazy {
            new.incompatible |= incompatible::DIRTY;
        }
        if new != *header {
            self.write_header(&new).await?;
            self.sync().await?;
            *header = new;
        }
        self.image.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Marks bitmaps as in use, durably. `false` if their directory is damaged.
    async fn mark_bitmaps(&self, pointer: BitmapsPointer, marking: Marking) -> Result<bool, Fault> {
        let file = File(&*self.file);
        let mut directory = match bitmap_directory(&file, self.image.layout, pointer).await {
            Ok(directory) => directory,
            Err(TablesError::Io(error)) => return Err(error.into()),
            Err(_) => return Ok(false),
        };
        let marked = bitmap::mark_in_use(&mut directory, pointer.count, marking);
        if marked == Ok(true) {
            file.write(pointer.directory_offset, &directory).await?;
            self.sync().await?;
        }
        Ok(marked.is_ok())
    }
}
