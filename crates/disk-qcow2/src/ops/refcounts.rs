//! The refcounts in an image's file, read and changed through a few cached refcount blocks.

use std::collections::BTreeMap;

use disk::DiskError;

use super::file::{File, long, short};
use crate::meta::header::Header;
use crate::meta::layout::Layout;
use crate::meta::refcount;

/// Memory for cached blocks, bytes; at least four blocks are cached.
const CACHE_BYTES: u64 = 4 << 20;
/// Bits of a refcount table entry that hold an offset (specification, "Refcount table").
const OFFSET_MASK: u64 = 0xffff_ffff_ffff_fe00;

struct Block {
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// Stored refcounts. What can not be found (no block, or a bad entry of the table) counts as 0.
pub(crate) struct Refcounts<'a> {
    file: &'a File<'a>,
    layout: Layout,
    /// Where each block is, bytes; 0 for none.
    blocks: Vec<u64>,
    cache: BTreeMap<usize, Block>,
    clock: u64,
}

/// The words of a refcount table or L1 table.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word))
}

/// What is wrong with an entry of the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadBlock {
    Reserved,
    Misaligned,
    Outside,
}

/// An entry of the refcount table that is not empty: where its block is, or the word and what is wrong with it.
pub(crate) type BlockEntry = Result<u64, (u64, BadBlock)>;

impl<'a> Refcounts<'a> {
    /// Reads the refcount table; calls `judge` with index and offset of every entry that is not empty, or with what is wrong
    /// with it, and leaves out those it declines.
    pub(crate) async fn read(
        file: &'a File<'a>,
        header: &Header,
        mut judge: impl FnMut(usize, BlockEntry) -> bool,
    ) -> Result<Self, DiskError> {
        let layout = header.layout();
        let bytes = u64::from(header.reftable_clusters) << layout.cluster_bits;
        let table = match header.reftable_offset < file.len() {
            true => file.read(header.reftable_offset, bytes).await?,
            false => Vec::new(),
        };
        let mut blocks: Vec<u64> = words(&table).collect();
        for (index, entry) in blocks.iter_mut().enumerate() {
            if *entry == 0 {
                continue;
            }
            let offset = *entry & OFFSET_MASK;
            let verdict = if *entry != offset {
                Err((*entry, BadBlock::Reserved))
            } else if layout.in_cluster(offset) != 0 {
                Err((*entry, BadBlock::Misaligned))
            } else if offset >= file.len() {
                Err((*entry, BadBlock::Outside))
            } else {
                Ok(offset)
            };
            if !judge(index, verdict) || verdict.is_err() {
                *entry = 0;
            }
        }
        let used = blocks.iter().rposition(|&entry| entry != 0).map_or(0, |last| last + 1);
        blocks.truncate(used);
        Ok(Self {
            file,
            layout,
            blocks,
            cache: BTreeMap::new(),
            clock: 0,
        })
    }

    /// Number of the block and place in it for a cluster.
    fn place(&self, cluster: u64) -> (usize, usize) {
        let per_block = self.layout.refblock_entries();
        (short(cluster / per_block), short(cluster % per_block))
    }

    /// Leaves out a block that turned out not to be one.
    pub(crate) fn forget(&mut self, number: usize) {
        if let Some(offset) = self.blocks.get_mut(number) {
            *offset = 0;
        }
    }

    /// Leaves out all blocks.
    pub(crate) fn forget_all(&mut self) {
        self.blocks.clear();
        self.cache.clear();
    }

    /// The first cluster from `from` on that some block counts.
    pub(crate) fn next_covered(&self, from: u64) -> Option<u64> {
        let (number, _) = self.place(from);
        let found = self.blocks.iter().skip(number).position(|&offset| offset != 0)?;
        match found {
            0 => Some(from),
            more => Some(long(number + more) * self.layout.refblock_entries()),
        }
    }

    /// Whether there is a block that counts this cluster.
    pub(crate) fn covers(&self, cluster: u64) -> bool {
        let (number, _) = self.place(cluster);
        self.blocks.get(number).is_some_and(|&offset| offset != 0)
    }

    async fn block(&mut self, number: usize) -> Result<Option<&mut Block>, DiskError> {
        let offset = self.blocks.get(number).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        self.clock += 1;
        if !self.cache.contains_key(&number) {
            self.make_room().await?;
            let bytes = self.file.read(offset, self.layout.cluster_bytes()).await?;
            let block = Block {
                bytes,
                dirty: false,
                used: 0,
            };
            self.cache.insert(number, block);
        }
        let mut block = self.cache.get_mut(&number);
        if let Some(block) = &mut block {
            block.used = self.clock;
        }
        Ok(block)
    }

    async fn make_room(&mut self) -> Result<(), DiskError> {
        let most = short(CACHE_BYTES >> self.layout.cluster_bits).clamp(4, 64);
        while self.cache.len() >= most {
            let oldest = self.cache.iter().min_by_key(|(_, block)| block.used);
            let Some(number) = oldest.map(|(number, _)| *number) else {
                break;
            };
            self.write_back(number).await?;
            self.cache.remove(&number);
        }
        Ok(())
    }

    async fn write_back(&mut self, number: usize) -> Result<(), DiskError> {
        let offset = self.blocks.get(number).copied().unwrap_or(0);
        if let Some(block) = self.cache.get_mut(&number)
            && block.dirty
        {
            self.file.write(offset, &block.bytes).await?;
            block.dirty = false;
        }
        Ok(())
    }

    /// A cluster's stored refcount, if its block is at hand.
    pub(crate) fn cached(&self, cluster: u64) -> Option<u64> {
        let (number, index) = self.place(cluster);
        let block = self.cache.get(&number)?;
        Some(refcount::get(&block.bytes, self.layout.refcount_order, index))
    }

    /// A cluster's stored refcount.
    pub(crate) async fn get(&mut self, cluster: u64) -> Result<u64, DiskError> {
        let (number, index) = self.place(cluster);
        let order = self.layout.refcount_order;
        let block = self.block(number).await?;
        Ok(block.map_or(0, |block| refcount::get(&block.bytes, order, index)))
    }

    /// Changes a cluster's refcount where there is a block for it. Written when the block leaves the cache, or by
    /// [`Refcounts::flush`].
    pub(crate) async fn set(&mut self, cluster: u64, count: u64) -> Result<(), DiskError> {
        let (number, index) = self.place(cluster);
        let order = self.layout.refcount_order;
        if let Some(block) = self.block(number).await? {
            refcount::set(&mut block.bytes, order, index, count);
            block.dirty = true;
        }
        Ok(())
    }

    /// The counts of clusters `from..to`, which one block counts; `None` when there is none, or only zeroes in a hole.
    pub(crate) async fn counts(&mut self, from: u64, to: u64) -> Result<Option<Vec<u64>>, DiskError> {
        let order = self.layout.refcount_order;
        let (number, first) = self.place(from);
        if !self.cache.contains_key(&number) && self.is_hole(number).await? {
            return Ok(None);
        }
        let last = first + short(to - from);
        let block = self.block(number).await?;
        Ok(block.map(|block| (first..last).map(|i| refcount::get(&block.bytes, order, i)).collect()))
    }

    async fn is_hole(&self, number: usize) -> Result<bool, DiskError> {
        match self.blocks.get(number).copied().unwrap_or(0) {
            0 => Ok(true),
            offset => {
                let end = offset + self.layout.cluster_bytes();
                Ok(self.file.data_from(offset, end).await? == end)
            }
        }
    }

    /// Writes all changed blocks. Not durable before the file is synced.
    pub(crate) async fn flush(&mut self) -> Result<(), DiskError> {
        let dirty: Vec<usize> = self.cache.iter().filter(|(_, b)| b.dirty).map(|(n, _)| *n).collect();
        for number in dirty {
            self.write_back(number).await?;
        }
        Ok(())
    }
}
