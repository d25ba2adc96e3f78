//! Many consecutive clusters for one table. Rare: an L1 table of more than one cluster, when a disk grows.

use super::fault::{Damage, Fault};
use super::state::Engine;
use super::structure::Critical;

impl Engine {
    /// Claims `count` consecutive clusters, and gives the first. The caller holds the structure lock.
    pub(crate) async fn allocate_stretch(&self, count: u64) -> Result<u64, Fault> {
        let claim = self.allocate_in_structure(count).await?;
        if claim.count == count {
            return Ok(claim.first);
        }
        self.unclaim(claim).await?;
        let layout = self.image.layout;
        let per_block = layout.refblock_entries();
        // Where nothing is counted yet: the blocks that count it, then the clusters wanted.
        let mut blocks = 1;
        while blocks * per_block < blocks + count {
            blocks += 1;
        }
        let number = loop {
            let hint = self.image.tables().free_hint / per_block;
            let found = self.uncounted(hint, blocks).await?;
            let entries = self.image.tables().reftable.entries;
            if found + blocks <= entries {
                break found;
            }
            self.make_refblock(entries).await?;
        };
        let first = number * per_block;
        if self.image.tables().overlaps(first, blocks + count) {
            return Err(Damage::Overlap(first << layout.cluster_bits).into());
        }
        self.cover(&*self.file, (first + blocks + count) << layout.cluster_bits)
            .await?;
        let critical = Critical::new(&self.image);
        let mut written = Ok(());
        for block in 0..blocks {
            let used = (blocks + count).saturating_sub(block * per_block);
            written = self.write_refblock((first + block) << layout.cluster_bits, used).await;
            if written.is_err() {
                break;
            }
        }
        critical.end();
        written?;
        self.link_refblocks(number, first, blocks).await?;
        let mut tables = self.image.tables();
        tables.fresh_from = tables.fresh_from.max(first + blocks + count);
        Ok(first + blocks)
    }

    /// The first of `count` consecutive refcount blocks that do not exist, from number `from` on.
    async fn uncounted(&self, from: u64, count: u64) -> Result<u64, Fault> {
        let mut number = from;
        let mut start = from;
        self.step(|tables| {
            while number < start + count && number < tables.reftable.entries {
                let there = tables.refblock(number)? != 0;
                number += 1;
                if there {
                    start = number;
                }
            }
            Ok(())
        })
        .await?;
        Ok(start)
    }
}
