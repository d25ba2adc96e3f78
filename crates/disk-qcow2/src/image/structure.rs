//! New tables: L2 tables made or copied, refcount blocks, larger refcount and L1 tables. All under the structure lock.
//!
//! Invariants: a table's contents are in the file before anything refers to it, so that the sync which starts a commit makes
//! them durable before the reference is written; a refcount block is the first cluster of those it counts, so that its own
//! refcount is in it; a table that moves is referred to by the header only when all of it is durable.

use guestmem::IoBuf;

use super::allocate::Claim;
use super::cache::Kind;
use super::fault::{Damage, Fault};
use super::state::{Engine, Image};
use super::tables::Table;
use crate::meta::entry::{COMPRESSED, COPIED, L1Entry};
use crate::meta::layout::REFTABLE_BYTES_MAX;
use crate::meta::refcount;
use crate::ops::File;

/// Poisons the image when it is dropped before its end: transfers that nobody waits for may still change what others use.
pub(crate) struct Critical<'a>(Option<&'a Image>);

impl<'a> Critical<'a> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Self(Some(image))
    }

    /// All transfers are over.
    pub(crate) fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Critical<'_> {
    fn drop(&mut self) {
        if let Some(image) = self.0 {
            image.poisoned.store(true, std::sync::atomic::Ordering::Release);
        }
    }
}

impl Engine {
    /// Where the L2 table for a guest offset is, once it may be changed: made if there is none, copied if it is shared.
    pub(crate) async fn writable_table(&self, guest: u64) -> Result<u64, Fault> {
        let entry = self.step(|tables| tables.l1_entry(guest)).await?;
        if entry.offset != 0 && entry.copied {
            return Ok(entry.offset);
        }
        let _structure = self.image.structure.lock().await;
        let old = self.step(|tables| tables.l1_entry(guest)).await?;
        if old.offset != 0 && old.copied {
            return Ok(old.offset);
        }
        let claim = self.allocate_in_structure(1).await?;
        let critical = Critical::new(&self.image);
        let made = self.fill_table(claim, old).await;
        critical.end();
        if let Err(fault) = made {
            self.unclaim(claim).await?;
            return Err(fault);
        }
        let layout = self.image.layout;
        let offset = claim.first << layout.cluster_bits;
        let word = L1Entry { offset, copied: true }.encode();
        self.step(|tables| {
            let at = tables.l1.offset + layout.l1_index(guest) * 8;
            tables.set_word(Kind::L1, at, word)?;
            tables.cache.forget(claim.first);
            if old.offset != 0 {
                tables.unreference(old.offset >> layout.cluster_bits, 1, true);
            }
            Ok(())
        })
        .await?;
        Ok(offset)
    }

    /// Writes what a new L2 table starts with: nothing, or what the shared one says of clusters that are shared, too.
    async fn fill_table(&self, claim: Claim, old: L1Entry) -> Result<(), Fault> {
        let layout = self.image.layout;
        let (offset, len) = (claim.first << layout.cluster_bits, layout.cluster_bytes());
        if old.offset == 0 {
            if !claim.fresh {
                self.file.write_zeroes(offset, len, disk::ZeroMode::MayUnmap).await?;
            }
            return Ok(());
        }
        if old.offset >= self.file.geometry().size_bytes {
            return Err(Damage::Outside(old.offset).into());
        }
        let mut table = File(&*self.file).read(old.offset, len).await?;
        let step = usize::try_from(layout.l2_entry_bytes()).unwrap_or(8);
        for entry in table.chunks_exact_mut(step) {
            if let Some(word) = entry.first_chunk_mut::<8>() {
                let value = u64::from_be_bytes(*word);
                if value & COMPRESSED == 0 {
                    *word = (value & !COPIED).to_be_bytes();
                }
            }
        }
        self.file.write(offset, vec![IoBuf::from_bytes(&table)?]).await.0?;
        Ok(())
    }

    /// Makes refcount block `number`, unless somebody has. The caller holds the structure lock.
    pub(crate) async fn make_refblock(&self, number: u64) -> Result<(), Fault> {
        let (there, entries) = self
            .step(|tables| Ok((tables.refblock(number)? != 0, tables.reftable.entries)))
            .await?;
        if there {
            return Ok(());
        }
        if number >= entries {
            return self.grow_reftable(number).await;
        }
        let layout = self.image.layout;
        let cluster = number * layout.refblock_entries();
        let offset = cluster << layout.cluster_bits;
        if self.image.tables().overlaps(cluster, 1) {
            return Err(Damage::Overlap(offset).into());
        }
        self.cover(&*self.file, offset + layout.cluster_bytes()).await?;
        let critical = Critical::new(&self.image);
        let written = self.write_refblock(offset, 1).await;
        critical.end();
        written?;
        self.link_refblocks(number, cluster, 1).await
    }

    /// Lets the refcount table refer to `count` blocks that are in consecutive clusters from `first` on.
    pub(crate) async fn link_refblocks(&self, number: u64, first: u64, count: u64) -> Result<(), Fault> {
        let bits = self.image.layout.cluster_bits;
        let mut block = 0;
        self.step(|tables| {
            while block < count {
                let at = tables.reftable.offset + (number + block) * 8;
                tables.set_word(Kind::Reftable, at, (first + block) << bits)?;
                tables.cache.forget(first + block);
                block += 1;
            }
            tables.fresh_from = tables.fresh_from.max(first + count);
            Ok(())
        })
        .await
    }

    /// Writes a refcount block in which the first `used` clusters are used.
    pub(crate) async fn write_refblock(&self, offset: u64, used: u64) -> Result<(), Fault> {
        let layout = self.image.layout;
        let mut block = vec![0; usize::try_from(layout.cluster_bytes()).unwrap_or(0)];
        for index in 0..used.min(layout.refblock_entries()) {
            refcount::set(
                &mut block,
                layout.refcount_order,
                usize::try_from(index).unwrap_or(0),
                1,
            );
        }
        self.file.write(offset, vec![IoBuf::from_bytes(&block)?]).await.0?;
        Ok(())
    }

    /// Moves the refcount table to where it can be larger, behind everything there is, together with the refcount blocks that
    /// count it. The caller holds the structure lock. `number` is the first block that has no place in the old table.
    async fn grow_reftable(&self, number: u64) -> Result<(), Fault> {
        let layout = self.image.layout;
        // What the old table says, and what it is about to, is durable first: then only this moves.
        self.commit_all().await?;
        let old = self.image.tables().reftable;
        let per_cluster = layout.cluster_bytes() / 8;
        // Half as much again, and room for the blocks that count it.
        let mut table_clusters = (number * 3 / 2 + 2).div_ceil(per_cluster);
        let mut blocks = 1;
        while table_clusters * per_cluster < number + blocks
            || blocks * layout.refblock_entries() < blocks + table_clusters
        {
            if blocks * layout.refblock_entries() < blocks + table_clusters {
                blocks += 1;
            } else {
                table_clusters += 1;
            }
        }
        if table_clusters << layout.cluster_bits > REFTABLE_BYTES_MAX.max(layout.cluster_bytes()) {
            return Err(Fault::Kind(disk::DiskErrorKind::NoSpace));
        }
        let first = number * layout.refblock_entries();
        if self.image.tables().overlaps(first, blocks + table_clusters) {
            return Err(Damage::Overlap(first << layout.cluster_bits).into());
        }
        let end = (first + blocks + table_clusters) << layout.cluster_bits;
        self.cover(&*self.file, end).await?;
        let critical = Critical::new(&self.image);
        let moved = self.move_reftable(old, (first, blocks, table_clusters)).await;
        critical.end();
        let table = moved?;
        let mut tables = self.image.tables();
        for cluster in first..first + blocks + table_clusters {
            tables.cache.forget(cluster);
        }
        let old_first = old.offset >> layout.cluster_bits;
        let old_clusters = layout.clusters(old.entries * 8);
        for cluster in old_first..old_first + old_clusters {
            tables.cache.forget(cluster);
        }
        tables.fixed.replace(
            old_first..old_first + old_clusters,
            first + blocks..first + blocks + table_clusters,
        );
        tables.reftable = table;
        tables.fresh_from = tables.fresh_from.max(first + blocks + table_clusters);
        tables.unreference(old_first, old_clusters, true);
        Ok(())
    }

    /// Writes blocks and table, then lets the header refer to them.
    async fn move_reftable(&self, old: Table, place: (u64, u64, u64)) -> Result<Table, Fault> {
        let layout = self.image.layout;
        let (first, blocks, table_clusters) = place;
        let number = first / layout.refblock_entries();
        let used = blocks + table_clusters;
        let mut words = File(&*self.file).read(old.offset, old.entries * 8).await?;
        words.resize(usize::try_from(table_clusters << layout.cluster_bits).unwrap_or(0), 0);
        for block in 0..blocks {
            let counted = used.saturating_sub(block * layout.refblock_entries());
            let offset = (first + block) << layout.cluster_bits;
            self.write_refblock(offset, counted).await?;
            let at = usize::try_from((number + block) * 8).unwrap_or(usize::MAX);
            if let Some(word) = words.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<8>()) {
                *word = offset.to_be_bytes();
            }
        }
        let offset = (first + blocks) << layout.cluster_bits;
        File(&*self.file).write(offset, &words).await?;
        self.sync().await?;
        let mut header = self.image.header.lock().await;
        let mut new = header.clone();
        new.reftable_offset = offset;
        new.reftable_clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
        self.write_header(&new).await?;
        *header = new;
        Ok(Table {
            offset,
            entries: table_clusters << layout.cluster_bits >> 3,
        })
    }
}
