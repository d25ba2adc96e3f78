//! Where everything is in a new image: one thing after the other, in whole clusters.
//!
//! ```text
//!   header · refcount table · refcount blocks · L1 table · (L2 tables · data, if it is preallocated)
//! ```

use disk::DiskError;

use super::file::{File, short};
use crate::meta::entry::COPIED;
use crate::meta::layout::Layout;
use crate::meta::refcount;

/// Cluster numbers in a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    layout: Layout,
    /// Where the refcount table begins.
    pub(crate) reftable: u64,
    /// Its length, clusters.
    pub(crate) reftable_clusters: u64,
    blocks: u64,
    block_clusters: u64,
    /// Where the L1 table begins.
    pub(crate) l1: u64,
    l1_clusters: u64,
    l1_entries: u64,
    l2: u64,
    l2_clusters: u64,
    /// Where the data begins.
    pub(crate) data: u64,
    /// Its length, clusters; 0 when it is in another file or not preallocated.
    pub(crate) data_clusters: u64,
    /// Guest clusters that are mapped from the start.
    mapped: u64,
    /// Length of the file, clusters.
    pub(crate) end: u64,
}

impl Plan {
    /// Plans an image for a disk of `size_bytes`, preallocated or not.
    pub(crate) fn new(layout: Layout, size_bytes: u64, preallocated: bool) -> Self {
        let l1_entries = layout.l1_entries(size_bytes);
        let l1_clusters = layout.clusters(l1_entries * 8);
        let mapped = if preallocated { layout.clusters(size_bytes) } else { 0 };
        let l2_clusters = mapped.div_ceil(layout.l2_entries());
        let data_clusters = if layout.external_data { 0 } else { mapped };
        let fixed = 1 + l1_clusters + l2_clusters + data_clusters;
        let (mut reftable_clusters, mut block_clusters) = (1, 1);
        // Blocks count themselves and the table, too: a few rounds.
        loop {
            let blocks = (fixed + reftable_clusters + block_clusters).div_ceil(layout.refblock_entries());
            let table = layout.clusters(blocks * 8);
            if blocks <= block_clusters && table <= reftable_clusters {
                break;
            }
            block_clusters = blocks.max(block_clusters);
            reftable_clusters = table.max(reftable_clusters);
        }
        let reftable = 1;
        let blocks = reftable + reftable_clusters;
        let l1 = blocks + block_clusters;
        let l2 = l1 + l1_clusters;
        let data = l2 + l2_clusters;
        Self {
            layout,
            reftable,
            reftable_clusters,
            blocks,
            block_clusters,
            l1,
            l1_clusters,
            l1_entries,
            l2,
            l2_clusters,
            data,
            data_clusters,
            mapped,
            end: data + data_clusters,
        }
    }

    fn offset(&self, cluster: u64) -> u64 {
        cluster << self.layout.cluster_bits
    }

    fn cluster(&self) -> Vec<u8> {
        vec![0; short(self.layout.cluster_bytes())]
    }

    /// Writes all tables. `backed`: preallocated subclusters show the backing file.
    pub(crate) async fn write(&self, file: &File<'_>, backed: bool) -> Result<(), DiskError> {
        self.write_list(
            file,
            (self.reftable, self.reftable_clusters),
            self.block_clusters,
            |index| self.offset(self.blocks + index),
        )
        .await?;
        self.write_list(file, (self.l1, self.l1_clusters), self.l1_entries, |index| {
            match index < self.l2_clusters {
                true => self.offset(self.l2 + index) | COPIED,
                false => 0,
            }
        })
        .await?;
        for index in 0..self.block_clusters {
            self.write_block(file, index).await?;
        }
        for index in 0..self.l2_clusters {
            self.write_l2(file, index, backed).await?;
        }
        Ok(())
    }

    /// Writes a table of words, zeroes behind them.
    async fn write_list(
        &self,
        file: &File<'_>,
        (start, clusters): (u64, u64),
        count: u64,
        word: impl Fn(u64) -> u64,
    ) -> Result<(), DiskError> {
        let per_cluster = self.layout.cluster_bytes() / 8;
        for cluster in 0..clusters {
            let mut bytes = self.cluster();
            let (words, _) = bytes.as_chunks_mut::<8>();
            for (index, place) in (cluster * per_cluster..count).zip(words) {
                *place = word(index).to_be_bytes();
            }
            file.write(self.offset(start + cluster), &bytes).await?;
        }
        Ok(())
    }

    async fn write_block(&self, file: &File<'_>, number: u64) -> Result<(), DiskError> {
        let mut bytes = self.cluster();
        let entries = self.layout.refblock_entries();
        let counted = self.end.saturating_sub(number * entries).min(entries);
        for index in 0..short(counted) {
            refcount::set(&mut bytes, self.layout.refcount_order, index, 1);
        }
        file.write(self.offset(self.blocks + number), &bytes).await
    }

    async fn write_l2(&self, file: &File<'_>, number: u64, backed: bool) -> Result<(), DiskError> {
        let (layout, mut bytes) = (self.layout, self.cluster());
        let first = number * layout.l2_entries();
        let base = if layout.external_data { 0 } else { self.data };
        let subclusters = if backed { 0 } else { u64::from(u32::MAX) };
        for (guest, entry) in (first..self.mapped).zip(bytes.chunks_exact_mut(short(layout.l2_entry_bytes()))) {
            let word = self.offset(base + guest) | COPIED;
            let (words, _) = entry.as_chunks_mut::<8>();
            for (place, word) in words.iter_mut().zip([word, subclusters]) {
                *place = word.to_be_bytes();
            }
        }
        file.write(self.offset(self.l2 + number), &bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cluster_is_counted_whatever_the_widths() {
        for cluster_bits in 9..=21 {
            for refcount_order in 0..=6 {
                for (size, preallocated) in [(0, false), (1 << 40, false), (1 << 30, true), (512, true)] {
                    let layout = Layout {
                        cluster_bits,
                        refcount_order,
                        extended_l2: false,
                        version: 3,
                        external_data: false,
                    };
                    let plan = Plan::new(layout, size, preallocated);
                    assert!(plan.end <= plan.block_clusters * layout.refblock_entries());
                    assert!(plan.block_clusters * 8 <= plan.reftable_clusters * layout.cluster_bytes());
                    assert_eq!(plan.l2_clusters > 0, preallocated);
                }
            }
        }
    }
}
