//! A walk over everything an image refers to, counting references to host clusters.
//!
//! ```text
//!   header · refcount table and blocks · snapshot table · L1 tables · bitmaps      claimed one by one, overlaps told
//!        └▶ every L1 entry gives its L2 table one reference
//!              └▶ every L2 table is read once; its clusters get as many references as the table has
//! ```
//!
//! Time is bounded by what the file holds, whatever an image claims: a table that overlaps another is not walked, an L2
//! table is read once however many refer to it, and holes are not read.

use disk::DiskError;

use super::file::{File, long, short};
use super::refcounts::{BadBlock, BlockEntry, Refcounts, words};
use super::report::CheckReport;
use super::tables::{self, Tables, TablesError};
use super::tally::{Kind, Tally, TallyFull};
use crate::meta::bitmap::{self, Piece};
use crate::meta::entry::{L1Entry, L2Entry, Place};
use crate::meta::head::Head;
use crate::meta::layout::{L1_BYTES_MAX, Layout};

/// Tables are read in pieces of this, bytes.
const PIECE_BYTES: u64 = 64 << 10;

/// Why a walk ends early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The file fails.
    #[error("the image's file can not be read")]
    Io(#[from] DiskError),
    /// Too little memory allowed.
    #[error("the image refers to more clusters than can be counted")]
    Memory(#[from] TallyFull),
    /// What hangs on the header can not be read.
    #[error("the image can not be walked")]
    Tables(#[from] TablesError),
}

/// Whether a walk counts the refcount structures themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// They are used, and counted.
    WithRefcounts,
    /// They are going to be replaced: noted, but not counted.
    WithoutRefcounts,
}

/// One walk.
pub(crate) struct Walk<'a> {
    pub(crate) file: &'a File<'a>,
    layout: Layout,
    /// Clusters of the file, the last one perhaps not whole.
    end: u64,
    pub(crate) tally: Tally,
    pub(crate) report: CheckReport,
    /// The refcount table and its blocks are where they can be, and nothing else is there.
    pub(crate) refcounts_sound: bool,
    /// Something could not be read, or is where something else is: what it refers to is not counted.
    pub(crate) incomplete: bool,
}

impl<'a> Walk<'a> {
    /// Nothing is counted yet. `memory_bytes` may be counted in, and half of what the file holds if that is more.
    pub(crate) async fn new(file: &'a File<'a>, head: &Head, memory_bytes: u64) -> Result<Self, DiskError> {
        let layout = head.header.layout();
        let end = layout.clusters(file.len());
        // All that is counted lies in the file.
        let most = Tally::most_bytes(end);
        let memory_bytes = match most <= memory_bytes {
            true => memory_bytes,
            false => memory_bytes.max(file.data_bytes(most.saturating_mul(2)).await? / 2),
        };
        Ok(Self {
            file,
            layout,
            end,
            tally: Tally::new(memory_bytes),
            refcounts_sound: true,
            incomplete: false,
            report: CheckReport {
                total_clusters: layout.clusters(head.header.size_bytes),
                ..CheckReport::default()
            },
        })
    }

    /// Walks everything. Gives the stored refcounts, for comparison.
    pub(crate) async fn run(&mut self, head: &Head, tables: &Tables, count: Count) -> Result<Refcounts<'a>, WalkError> {
        let header = &head.header;
        self.claim(0, 1, Kind::Header)?;
        let mut refcounts = self.walk_refcounts(head, count).await?;
        self.claim(header.snapshots_offset, tables.snapshots_bytes, Kind::Snapshots)?;
        let active = (header.l1_offset, header.l1_entries);
        self.walk_l1(active, Kind::L1, &mut refcounts).await?;
        for snapshot in &tables.snapshots {
            let table = (snapshot.l1_offset, snapshot.l1_entries);
            self.walk_l1(table, Kind::SnapshotL1, &mut refcounts).await?;
        }
        self.walk_bitmaps(head).await?;
        let mut next = 0;
        while let Some(cluster) = self.tally.next_of(next, [Kind::L2, Kind::SnapshotL2]) {
            self.walk_l2(cluster, &mut refcounts).await?;
            next = cluster + 1;
        }
        Ok(refcounts)
    }

    /// Notes that `len` bytes from `offset` on hold something. False: they can not, and what is there should not be believed.
    /// The first overlap ends it, so that all claims together take no longer than the file has clusters.
    fn claim(&mut self, offset: u64, len: u64, kind: Kind) -> Result<bool, WalkError> {
        if len == 0 {
            return Ok(true);
        }
        let name = kind.name();
        if self.layout.in_cluster(offset) != 0 {
            self.unknown(|| format!("{name} at {offset:#x} does not begin with a cluster"));
            return Ok(false);
        }
        let first = offset >> self.layout.cluster_bits;
        let Some(end) = first
            .checked_add(self.layout.clusters(len))
            .filter(|&end| end <= self.end)
        else {
            self.unknown(|| format!("{name} of {len} bytes at {offset:#x} reaches beyond the end of the file"));
            return Ok(false);
        };
        for cluster in first..end {
            self.tally.add(cluster, 1)?;
            let other = self.tally.kind(cluster);
            if other != Kind::Data {
                self.overlap(cluster, kind, other);
                return Ok(false);
            }
            self.tally.set_kind(cluster, kind)?;
        }
        Ok(true)
    }

    /// Notes something whose references are not known.
    fn unknown(&mut self, problem: impl FnOnce() -> String) {
        self.incomplete = true;
        self.report.corruption(problem);
    }

    fn overlap(&mut self, cluster: u64, one: Kind, other: Kind) {
        let offset = cluster << self.layout.cluster_bits;
        let counting = |kind| matches!(kind, Kind::Reftable | Kind::Refblock);
        self.refcounts_sound &= !counting(one) && !counting(other);
        self.unknown(|| format!("{} at {offset:#x} overlaps {}", one.name(), other.name()));
    }

    async fn walk_refcounts(&mut self, head: &Head, count: Count) -> Result<Refcounts<'a>, WalkError> {
        let (header, layout) = (&head.header, self.layout);
        let bytes = u64::from(header.reftable_clusters) << layout.cluster_bits;
        let table = header.reftable_offset;
        let mut entries: Vec<(usize, BlockEntry)> = Vec::new();
        let believed = match count {
            Count::WithRefcounts => self.claim(table, bytes, Kind::Reftable)?,
            Count::WithoutRefcounts => layout.in_cluster(table) == 0 && table < self.file.len(),
        };
        let refcounts = Refcounts::read(self.file, header, |index, entry| {
            entries.push((index, entry));
            believed
        });
        let mut refcounts = refcounts.await?;
        if count == Count::WithoutRefcounts || !believed {
            self.refcounts_sound &= believed;
            return Ok(refcounts);
        }
        for (index, entry) in entries {
            let fine = match entry {
                Ok(offset) => self.claim(offset, 1, Kind::Refblock)?,
                Err((word, why)) => {
                    let why = match why {
                        BadBlock::Reserved => "has reserved bits set",
                        BadBlock::Misaligned => "does not point at the start of a cluster",
                        BadBlock::Outside => "points beyond the end of the file",
                    };
                    self.unknown(|| format!("refcount table entry {index} ({word:#x}) {why}"));
                    false
                }
            };
            if !fine {
                self.refcounts_sound = false;
                refcounts.forget(index);
            }
        }
        Ok(refcounts)
    }

    async fn walk_l1(
        &mut self,
        (offset, entries): (u64, u32),
        kind: Kind,
        refcounts: &mut Refcounts<'a>,
    ) -> Result<(), WalkError> {
        let bytes = u64::from(entries) * 8;
        if bytes > L1_BYTES_MAX {
            self.unknown(|| format!("{} has {entries} entries, more than are supported", kind.name()));
            return Ok(());
        }
        if !self.claim(offset, bytes, kind)? {
            return Ok(());
        }
        let end = offset + bytes;
        let mut at = self.file.data_from(offset, end).await?;
        while at < end {
            let table = self.file.read(at, PIECE_BYTES.min(end - at)).await?;
            for word in words(&table) {
                self.l1_entry(word, kind, refcounts).await?;
            }
            at = self.file.data_from(at + long(table.len()), end).await?;
        }
        Ok(())
    }

    async fn l1_entry(&mut self, word: u64, table: Kind, refcounts: &mut Refcounts<'a>) -> Result<(), WalkError> {
        if word == 0 {
            return Ok(());
        }
        let entry = match L1Entry::decode(word, self.layout) {
            Ok(entry) => entry,
            Err(error) => {
                self.unknown(|| format!("{}: {error}", table.name()));
                return Ok(());
            }
        };
        let cluster = entry.offset >> self.layout.cluster_bits;
        if entry.offset == 0 {
            return Ok(());
        }
        if cluster >= self.end {
            self.unknown(|| format!("an L2 table at {:#x} lies beyond the end of the file", entry.offset));
            return Ok(());
        }
        let kind = match table {
            Kind::L1 => Kind::L2,
            _ => Kind::SnapshotL2,
        };
        match self.tally.kind(cluster) {
            Kind::Data => self.tally.set_kind(cluster, kind)?,
            Kind::L2 | Kind::SnapshotL2 => {}
            other => self.overlap(cluster, kind, other),
        }
        self.tally.add(cluster, 1)?;
        if table == Kind::L1 {
            let stored = refcounts.get(cluster).await?;
            self.flag(entry.offset, entry.copied, stored, "L2 table");
        }
        Ok(())
    }

    /// Bit 63 promises one reference.
    fn flag(&mut self, offset: u64, copied: bool, stored: u64, what: &str) {
        if copied != (stored == 1) {
            let is = if copied { "marked" } else { "not marked" };
            self.report.corruption(|| {
                format!("{what} at {offset:#x} is {is} as having one reference, and its refcount is {stored}")
            });
        }
    }

    async fn walk_l2(&mut self, cluster: u64, refcounts: &mut Refcounts<'a>) -> Result<(), WalkError> {
        let layout = self.layout;
        let (offset, bytes) = (cluster << layout.cluster_bits, layout.cluster_bytes());
        if self.file.data_from(offset, offset + bytes).await? == offset + bytes {
            return Ok(());
        }
        let active = self.tally.kind(cluster) == Kind::L2;
        let times = self.tally.count(cluster);
        let table = self.file.read(offset, bytes).await?;
        let mut expected = None;
        for entry in table.chunks_exact(short(layout.l2_entry_bytes())) {
            let mut fields = words(entry);
            let word = fields.next().unwrap_or(0);
            let bitmap = fields.next().unwrap_or(0);
            if word == 0 && bitmap == 0 {
                continue;
            }
            match L2Entry::decode(word, bitmap, layout) {
                Ok(entry) => match entry.place {
                    Place::Nowhere => {}
                    Place::Compressed(data) => {
                        if active {
                            self.report.allocated_clusters += 1;
                            self.report.compressed_clusters += 1;
                            self.report.fragmented_clusters += 1;
                        }
                        self.refer_compressed(data.offset, data.len, times)?;
                    }
                    Place::At { host, copied } => {
                        if active {
                            self.report.allocated_clusters += 1;
                            if expected.is_some_and(|expected| expected != host) {
                                self.report.fragmented_clusters += 1;
                            }
                            expected = Some(host + bytes);
                        }
                        if !layout.external_data && self.refer(host, times)? && active {
                            let cluster = host >> layout.cluster_bits;
                            let stored = match refcounts.cached(cluster) {
                                Some(stored) => stored,
                                None => refcounts.get(cluster).await?,
                            };
                            self.flag(host, copied, stored, "cluster");
                        }
                    }
                },
                Err(error) => self.unknown(|| format!("L2 table at {offset:#x}: {error}")),
            }
        }
        Ok(())
    }

    /// Notes `times` references to guest data. False: it can not be there.
    fn refer(&mut self, host: u64, times: u16) -> Result<bool, WalkError> {
        let cluster = host >> self.layout.cluster_bits;
        if cluster >= self.end {
            self.unknown(|| format!("guest data at {host:#x} lies beyond the end of the file"));
            return Ok(false);
        }
        let other = self.tally.kind(cluster);
        if other != Kind::Data {
            self.overlap(cluster, Kind::Data, other);
        }
        self.tally.add(cluster, times)?;
        Ok(true)
    }

    fn refer_compressed(&mut self, offset: u64, len: u64, times: u16) -> Result<(), WalkError> {
        if self.layout.external_data {
            self.unknown(|| format!("compressed data at {offset:#x} in an image whose data is in another file"));
            return Ok(());
        }
        let first = offset >> self.layout.cluster_bits;
        let last = (offset + len - 1) >> self.layout.cluster_bits;
        for cluster in first..=last {
            if !self.refer(cluster << self.layout.cluster_bits, times)? {
                break;
            }
        }
        Ok(())
    }

    async fn walk_bitmaps(&mut self, head: &Head) -> Result<(), WalkError> {
        let pointer = match tables::bitmaps(head) {
            Ok(Some(pointer)) => pointer,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.unknown(|| error.to_string());
                return Ok(());
            }
        };
        if !self.claim(pointer.directory_offset, pointer.directory_bytes, Kind::BitmapDirectory)? {
            return Ok(());
        }
        let bitmaps = match tables::read_bitmaps(self.file, head).await {
            Ok(bitmaps) => bitmaps,
            Err(TablesError::Io(error)) => return Err(error.into()),
            Err(error) => {
                self.unknown(|| chain(&error));
                return Ok(());
            }
        };
        for bitmap in bitmaps {
            let bytes = u64::from(bitmap.table_entries) * 8;
            if bitmap.table_entries > bitmap::MAX_TABLE_ENTRIES {
                self.unknown(|| format!("a bitmap table has {} entries", bitmap.table_entries));
            } else if self.claim(bitmap.table_offset, bytes, Kind::BitmapTable)? {
                self.walk_bitmap_table(bitmap.table_offset, bytes).await?;
            }
        }
        Ok(())
    }

    async fn walk_bitmap_table(&mut self, offset: u64, bytes: u64) -> Result<(), WalkError> {
        let end = offset + bytes;
        let mut at = self.file.data_from(offset, end).await?;
        while at < end {
            let table = self.file.read(at, PIECE_BYTES.min(end - at)).await?;
            for word in words(&table) {
                match Piece::of(word) {
                    Piece::Zeroes | Piece::Ones => {}
                    Piece::At(data) => {
                        self.claim(data, 1, Kind::BitmapData)?;
                    }
                    Piece::Bad => self.unknown(|| format!("bitmap table entry {word:#x} has reserved bits set")),
                }
            }
            at = self.file.data_from(at + long(table.len()), end).await?;
        }
        Ok(())
    }

    /// Refcounts that differ from what was counted, from cluster `from` on: the next few, and where to go on. `None` when
    /// there are no more.
    pub(crate) async fn mismatches(
        &mut self,
        refcounts: &mut Refcounts<'a>,
        from: u64,
    ) -> Result<Option<(Vec<Mismatch>, u64)>, WalkError> {
        let step = self.layout.refblock_entries().min(long(COMPARED_AT_ONCE));
        let from = from - from % step;
        let used = self.tally.next_used(from);
        let stored = refcounts.next_covered(from);
        let Some(start) = [used, stored].into_iter().flatten().min() else {
            return Ok(None);
        };
        let start = start - start % step;
        let counts = refcounts.counts(start, start + step).await?.unwrap_or_default();
        let mut found = Vec::new();
        let used = self.tally.next_used(start).unwrap_or(u64::MAX);
        if counts.is_empty() && used >= start + step {
            // Nothing here: on to what is used next, or to the next block.
            let block = (start / self.layout.refblock_entries() + 1) * self.layout.refblock_entries();
            return Ok(Some((found, used.min(block).max(start + step))));
        }
        let tallied = self.tally.counts(start, start + step);
        for (cluster, counted) in (start..).zip(tallied) {
            let stored = counts.get(short(cluster - start)).copied().unwrap_or(0);
            let end = (cluster + 1) << self.layout.cluster_bits;
            if stored != 0 || counted != 0 {
                self.report.image_end_offset = self.report.image_end_offset.max(end);
            }
            // A tally at its end stands for any number from there on.
            let same = stored == u64::from(counted) || (counted == u16::MAX && stored > u64::from(counted));
            if !same {
                found.push(Mismatch {
                    cluster,
                    stored,
                    counted: counted.into(),
                });
            }
        }
        Ok(Some((found, start + step)))
    }
}

/// Clusters whose refcounts are compared at once.
const COMPARED_AT_ONCE: usize = 32 << 10;

/// A refcount that is not the number of references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) cluster: u64,
    pub(crate) stored: u64,
    pub(crate) counted: u64,
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}
