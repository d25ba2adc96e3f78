//! A larger virtual disk, while it is in use.

use std::sync::atomic::Ordering;

use disk::{DiskErrorKind, ZeroMode};

use super::fault::Fault;
use super::state::Engine;
use super::structure::Critical;
use super::tables::Table;
use crate::meta::bitmap::Marking;
use crate::meta::layout::L1_BYTES_MAX;
use crate::ops::File;

impl Engine {
    /// Makes the virtual disk larger; the size was checked to be. The new size is visible once the header has it.
    pub(crate) async fn grow(&self, size_bytes: u64) -> Result<(), Fault> {
        let _resizing = self.image.resizing.lock().await;
        self.image.check_sound()?;
        let old = self.image.size_bytes();
        if old >= size_bytes {
            return Ok(());
        }
        let layout = self.image.layout;
        let needed = layout.l1_entries(size_bytes);
        if needed * 8 > L1_BYTES_MAX {
            return Err(Fault::Kind(DiskErrorKind::Unsupported));
        }
        // Bitmaps have the size of the disk.
        self.prepare_first(Marking::All).await?;
        if let Some(data) = &self.data {
            self.cover(&**data, size_bytes).await?;
        }
        let structure = self.image.structure.lock().await;
        let entries = self.image.tables().l1.entries;
        if needed > entries {
            self.grow_l1(needed).await?;
        }
        drop(structure);
        // A longer table may have entries of what was behind the end: a snapshot's machine state, for one.
        let known = entries.saturating_mul(layout.l2_span_bytes());
        self.zero_hidden(old, size_bytes, known).await?;
        let mut header = self.image.header.lock().await;
        let mut new = header.clone();
        new.size_bytes = size_bytes;
        self.write_header(&new).await?;
        *header = new;
        self.image.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// What must not show when the disk's end moves: the rest of its last unit, what is mapped up to `known`, and what the
    /// backing has behind it.
    async fn zero_hidden(&self, old: u64, new: u64, known: u64) -> Result<(), Fault> {
        let unit = self.image.layout.unit_bytes();
        let first = old.next_multiple_of(unit).min(new);
        self.zero_edge(old, first).await?;
        let end = new.min(self.image.backing_bytes.max(known)).next_multiple_of(unit);
        // Within the old last unit there is nothing but the edge.
        if first < new && first < end {
            self.zero_middle(first, end, ZeroMode::MayUnmap).await?;
        }
        self.commit_all().await
    }

    /// Moves the L1 table to where it can have `needed` entries. The caller holds the structure lock, so that no entry changes.
    async fn grow_l1(&self, needed: u64) -> Result<(), Fault> {
        let layout = self.image.layout;
        let bits = layout.cluster_bits;
        let clusters = layout.clusters(needed * 8);
        let first = self.allocate_stretch(clusters).await?;
        // The new clusters' refcounts, and all that the old table says, are durable from here on.
        self.commit_all().await?;
        let old = self.image.tables().l1;
        let offset = first << bits;
        let critical = Critical::new(&self.image);
        let moved = self.move_l1(old, offset, clusters << bits, needed).await;
        critical.end();
        moved?;
        let mut tables = self.image.tables();
        tables.l1 = Table {
            offset,
            entries: needed,
        };
        (first..first + clusters).for_each(|cluster| tables.cache.forget(cluster));
        let (old_first, old_clusters) = (old.offset >> bits, layout.clusters(old.entries * 8));
        (old_first..old_first + old_clusters).for_each(|cluster| tables.cache.forget(cluster));
        tables
            .fixed
            .replace(old_first..old_first + old_clusters, first..first + clusters);
        if old.entries > 0 {
            tables.unreference(old_first, old_clusters, true);
        }
        Ok(())
    }

    async fn move_l1(&self, old: Table, offset: u64, bytes: u64, needed: u64) -> Result<(), Fault> {
        let file = File(&*self.file);
        let mut words = file.read(old.offset, old.entries * 8).await?;
        words.resize(usize::try_from(bytes).unwrap_or(0), 0);
        file.write(offset, &words).await?;
        self.sync().await?;
        let mut header = self.image.header.lock().await;
        let mut new = header.clone();
        new.l1_offset = offset;
        new.l1_entries = u32::try_from(needed).unwrap_or(u32::MAX);
        self.write_header(&new).await?;
        *header = new;
        self.sync().await
    }
}
