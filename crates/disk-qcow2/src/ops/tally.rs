//! How often each host cluster is referenced, and what for: the memory of a check.
//!
//! One byte per host cluster, two where one of its neighbours is referenced often, and one more where metadata is, in pages that
//! exist only where something is referenced, so that a sparse file of any length costs what is in it. The total is bounded by
//! whoever makes the tally.

use std::collections::BTreeMap;

/// Clusters in one page.
const PAGE_CLUSTERS: usize = 2048;
/// What a page of small counts without kinds takes, bytes (one per cluster, and what the map takes).
const PAGE_BYTES: u64 = PAGE_CLUSTERS as u64 + 64;
/// What large counts take in addition, bytes.
const WIDE_BYTES: u64 = PAGE_CLUSTERS as u64;
/// What the kinds of a page take, bytes.
const KINDS_BYTES: u64 = PAGE_CLUSTERS as u64;

/// What metadata a cluster holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// None, or guest data.
    Data = 0,
    /// The header.
    Header,
    /// The active L1 table.
    L1,
    /// The L1 table of a snapshot.
    SnapshotL1,
    /// An L2 table the disk uses.
    L2,
    /// An L2 table only snapshots use.
    SnapshotL2,
    /// The refcount table.
    Reftable,
    /// A refcount block.
    Refblock,
    /// The snapshot table.
    Snapshots,
    /// The bitmap directory.
    BitmapDirectory,
    /// A bitmap table.
    BitmapTable,
    /// Bits of a bitmap.
    BitmapData,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Data,
        Self::Header,
        Self::L1,
        Self::SnapshotL1,
        Self::L2,
        Self::SnapshotL2,
        Self::Reftable,
        Self::Refblock,
        Self::Snapshots,
        Self::BitmapDirectory,
        Self::BitmapTable,
        Self::BitmapData,
    ];

    /// For messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Data => "guest data",
            Self::Header => "the header",
            Self::L1 => "the L1 table",
            Self::SnapshotL1 => "a snapshot's L1 table",
            Self::L2 => "an L2 table",
            Self::SnapshotL2 => "a snapshot's L2 table",
            Self::Reftable => "the refcount table",
            Self::Refblock => "a refcount block",
            Self::Snapshots => "the snapshot table",
            Self::BitmapDirectory => "the bitmap directory",
            Self::BitmapTable => "a bitmap table",
            Self::BitmapData => "bitmap data",
        }
    }
}

/// The counts of a page.
enum Counts {
    /// All of them are small, as a rule.
    Narrow(Box<[u8; PAGE_CLUSTERS]>),
    /// Some is not.
    Wide(Box<[u16; PAGE_CLUSTERS]>),
}

impl Counts {
    fn get(&self, index: usize) -> u16 {
        match self {
            Self::Narrow(counts) => counts.get(index).copied().unwrap_or(0).into(),
            Self::Wide(counts) => counts.get(index).copied().unwrap_or(0),
        }
    }

    /// False, and nothing is changed, if the count has no room.
    fn set(&mut self, index: usize, count: u16) -> bool {
        match self {
            Self::Narrow(counts) => match (u8::try_from(count), counts.get_mut(index)) {
                (Ok(count), Some(slot)) => *slot = count,
                _ => return false,
            },
            Self::Wide(counts) => match counts.get_mut(index) {
                Some(slot) => *slot = count,
                None => return false,
            },
        }
        true
    }

    fn widen(&mut self) {
        if let Self::Narrow(counts) = self {
            let mut wide = Box::new([0; PAGE_CLUSTERS]);
            for (wide, narrow) in wide.iter_mut().zip(counts.iter()) {
                *wide = u16::from(*narrow);
            }
            *self = Self::Wide(wide);
        }
    }

    fn extend_to(&self, counts: &mut Vec<u16>, from: usize, len: usize) {
        match self {
            Self::Narrow(page) => counts.extend(page.iter().skip(from).take(len).map(|&count| u16::from(count))),
            Self::Wide(page) => counts.extend(page.iter().skip(from).take(len)),
        }
    }

    /// The first from `from` on that is not 0.
    fn first_used(&self, from: usize) -> Option<usize> {
        let found = match self {
            Self::Narrow(counts) => counts.iter().skip(from).position(|&count| count != 0),
            Self::Wide(counts) => counts.iter().skip(from).position(|&count| count != 0),
        };
        found.map(|index| from + index)
    }

    fn last_used(&self) -> Option<usize> {
        match self {
            Self::Narrow(counts) => counts.iter().rposition(|&count| count != 0),
            Self::Wide(counts) => counts.iter().rposition(|&count| count != 0),
        }
    }
}

struct Page {
    counts: Counts,
    kinds: Option<Box<[u8; PAGE_CLUSTERS]>>,
}

/// The image refers to more clusters than the tally has memory for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("counting references needs more than {limit_bytes} bytes of memory: raise the limit")]
pub struct TallyFull {
    /// The limit, bytes.
    pub limit_bytes: u64,
}

/// References to host clusters.
pub(crate) struct Tally {
    pages: BTreeMap<u64, Box<Page>>,
    /// The page used last, outside of the map.
    hot: Option<(u64, Box<Page>)>,
    used_bytes: u64,
    limit_bytes: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder below PAGE_CLUSTERS")]
const fn place(cluster: u64) -> (u64, usize) {
    (
        cluster / PAGE_CLUSTERS as u64,
        (cluster % PAGE_CLUSTERS as u64) as usize,
    )
}

impl Tally {
    /// What a tally of so many clusters takes at most, bytes.
    pub(crate) const fn most_bytes(clusters: u64) -> u64 {
        let pages = clusters.div_ceil(PAGE_CLUSTERS as u64);
        pages.saturating_mul(PAGE_BYTES + WIDE_BYTES + KINDS_BYTES)
    }

    /// No references; never more memory than this.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            hot: None,
            used_bytes: 0,
            limit_bytes,
        }
    }

    fn page(&self, number: u64) -> Option<&Page> {
        match &self.hot {
            Some((hot, page)) if *hot == number => Some(page),
            _ => self.pages.get(&number).map(|page| &**page),
        }
    }

    fn charge(&mut self, bytes: u64) -> Result<(), TallyFull> {
        self.used_bytes += bytes;
        if self.used_bytes > self.limit_bytes {
            return Err(TallyFull {
                limit_bytes: self.limit_bytes,
            });
        }
        Ok(())
    }

    fn page_mut(&mut self, number: u64) -> Result<&mut Page, TallyFull> {
        if self.hot.as_ref().is_none_or(|(hot, _)| *hot != number) {
            let page = match self.pages.remove(&number) {
                Some(page) => page,
                None => {
                    self.charge(PAGE_BYTES)?;
                    Box::new(Page {
                        counts: Counts::Narrow(Box::new([0; PAGE_CLUSTERS])),
                        kinds: None,
                    })
                }
            };
            if let Some((hot, page)) = self.hot.replace((number, page)) {
                self.pages.insert(hot, page);
            }
        }
        match &mut self.hot {
            Some((_, page)) => Ok(page),
            // Set just above.
            None => Err(TallyFull {
                limit_bytes: self.limit_bytes,
            }),
        }
    }

    /// Counts `times` more references to a cluster. Counts stop at 65535.
    pub(crate) fn add(&mut self, cluster: u64, times: u16) -> Result<(), TallyFull> {
        let (number, index) = place(cluster);
        let counts = &mut self.page_mut(number)?.counts;
        let count = counts.get(index).saturating_add(times);
        if !counts.set(index, count) {
            self.charge(WIDE_BYTES)?;
            let counts = &mut self.page_mut(number)?.counts;
            counts.widen();
            counts.set(index, count);
        }
        Ok(())
    }

    /// References to a cluster; 65535 stands for that or more.
    pub(crate) fn count(&self, cluster: u64) -> u16 {
        let (number, index) = place(cluster);
        self.page(number).map_or(0, |page| page.counts.get(index))
    }

    /// References to the clusters `from..to`, one number for each.
    pub(crate) fn counts(&self, from: u64, to: u64) -> Vec<u16> {
        let mut counts = Vec::new();
        let mut at = from;
        while at < to {
            let (number, index) = place(at);
            let here = (PAGE_CLUSTERS - index).min(usize::try_from(to - at).unwrap_or(PAGE_CLUSTERS));
            match self.page(number) {
                Some(page) => page.counts.extend_to(&mut counts, index, here),
                None => counts.resize(counts.len() + here, 0),
            }
            at += here as u64;
        }
        counts
    }

    /// What a cluster holds.
    pub(crate) fn kind(&self, cluster: u64) -> Kind {
        let (number, index) = place(cluster);
        let kinds = self.page(number).and_then(|page| page.kinds.as_ref());
        let kind = kinds.and_then(|kinds| kinds.get(index)).copied().unwrap_or(0);
        Kind::ALL.get(usize::from(kind)).copied().unwrap_or(Kind::Data)
    }

    /// Says what a cluster holds.
    pub(crate) fn set_kind(&mut self, cluster: u64, kind: Kind) -> Result<(), TallyFull> {
        let (number, index) = place(cluster);
        if self.page_mut(number)?.kinds.is_none() {
            self.charge(KINDS_BYTES)?;
            self.page_mut(number)?.kinds = Some(Box::new([0; PAGE_CLUSTERS]));
        }
        let kinds = self.page_mut(number)?.kinds.as_mut();
        if let Some(slot) = kinds.and_then(|kinds| kinds.get_mut(index)) {
            *slot = kind as u8;
        }
        Ok(())
    }

    /// Puts the hot page with the others, so that they can be walked in order.
    fn settle(&mut self) {
        if let Some((number, page)) = self.hot.take() {
            self.pages.insert(number, page);
        }
    }

    /// The first cluster from `from` on that holds one of two kinds.
    pub(crate) fn next_of(&mut self, from: u64, kinds: [Kind; 2]) -> Option<u64> {
        self.settle();
        let (first, skip) = place(from);
        let wanted = kinds.map(|kind| kind as u8);
        for (number, page) in self.pages.range(first..) {
            let skip = if *number == first { skip } else { 0 };
            let Some(page_kinds) = &page.kinds else { continue };
            let found = page_kinds.iter().skip(skip).position(|kind| wanted.contains(kind));
            if let Some(index) = found {
                return Some(number * PAGE_CLUSTERS as u64 + (skip + index) as u64);
            }
        }
        None
    }

    /// The first cluster from `from` on that is referenced.
    pub(crate) fn next_used(&mut self, from: u64) -> Option<u64> {
        self.settle();
        let (first, skip) = place(from);
        for (number, page) in self.pages.range(first..) {
            let skip = if *number == first { skip } else { 0 };
            if let Some(index) = page.counts.first_used(skip) {
                return Some(number * PAGE_CLUSTERS as u64 + index as u64);
            }
        }
        None
    }

    /// The first of `wanted` clusters in a row without references, from `from` on.
    pub(crate) fn free_run(&mut self, from: u64, wanted: u64) -> u64 {
        let mut start = from;
        loop {
            match self.next_used(start) {
                Some(used) if used - start < wanted => start = used + 1,
                _ => return start,
            }
        }
    }

    /// The first cluster behind all referenced ones.
    pub(crate) fn end(&mut self) -> u64 {
        self.settle();
        for (number, page) in self.pages.iter().rev() {
            if let Some(index) = page.counts.last_used() {
                return number * PAGE_CLUSTERS as u64 + index as u64 + 1;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_kinds_are_kept_apart_and_found_in_order() {
        let mut tally = Tally::new(1 << 20);
        let far = 1 << 50;
        for cluster in [0, 1, 5000, far] {
            tally.add(cluster, 1).unwrap();
        }
        tally.add(5000, u16::MAX).unwrap();
        tally.set_kind(5000, Kind::L2).unwrap();
        tally.set_kind(far, Kind::SnapshotL2).unwrap();
        assert_eq!([0, 1, 2, 5000, far].map(|c| tally.count(c)), [1, 1, 0, u16::MAX, 1]);
        assert_eq!(
            [1, 5000, far].map(|c| tally.kind(c)),
            [Kind::Data, Kind::L2, Kind::SnapshotL2]
        );
        let counts = tally.counts(1, 6000);
        assert_eq!(
            (counts.len(), counts[0], counts[1], counts[4999]),
            (5999, 1, 0, u16::MAX)
        );
        let kinds = [Kind::L2, Kind::SnapshotL2];
        assert_eq!(tally.next_of(0, kinds), Some(5000));
        assert_eq!(tally.next_of(5001, kinds), Some(far));
        assert_eq!(tally.next_of(far + 1, kinds), None);
        assert_eq!(tally.next_used(2), Some(5000));
        assert_eq!((tally.free_run(0, 2), tally.free_run(0, 5000)), (2, 5001));
        assert_eq!(tally.end(), far + 1);
    }

    #[test]
    fn small_counts_become_large_ones() {
        let mut tally = Tally::new(PAGE_BYTES + WIDE_BYTES);
        for cluster in 0..300 {
            tally.add(cluster, 255).unwrap();
        }
        assert_eq!(tally.used_bytes, PAGE_BYTES);
        tally.add(7, 1).unwrap();
        tally.add(7, 1).unwrap();
        tally.add(8, 1).unwrap();
        assert_eq!([6, 7, 8, 300].map(|c| tally.count(c)), [255, 257, 256, 0]);
        assert_eq!(tally.counts(298, 302), [255, 255, 0, 0]);
        assert_eq!(
            (tally.next_used(1), tally.next_used(300), tally.end()),
            (Some(1), None, 300)
        );
        assert!(tally.add(PAGE_CLUSTERS as u64, 1).is_err());
        assert!(tally.used_bytes <= Tally::most_bytes(2049));
    }

    #[test]
    fn memory_is_bounded() {
        let mut tally = Tally::new(10 * PAGE_BYTES);
        for page in 0..10 {
            tally.add(page * PAGE_CLUSTERS as u64, 1).unwrap();
        }
        let full = tally.add(10 * PAGE_CLUSTERS as u64, 1);
        assert_eq!(
            full,
            Err(TallyFull {
                limit_bytes: 10 * PAGE_BYTES
            })
        );
    }
}
