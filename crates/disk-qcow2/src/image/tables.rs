//! The image's tables as they are now: words of L1, L2 and refcount tables, read and set under the lock.
//!
//! Everything here is synchronous. What it needs and is not in the cache it asks for ([`Want::Slice`]); the caller loads that
//! without the lock and tries again. A function that changes anything asks for all it needs before it changes the first word.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use event_listener::Event;

use super::busy::Busy;
use super::cache::{Cache, Kind, OffsetMap};
use super::epoch::{Epochs, Past};
use super::fault::Damage;
use crate::meta::entry::{EntryError, L1Entry, L2Entry, Place};
use crate::meta::layout::{HOST_END, Layout};

/// What has to happen before a step under the lock can be made.
#[derive(Debug)]
pub(crate) enum Want {
    /// This slice has to be loaded.
    Slice(u64, Kind),
    /// This refcount block (by number) has to be made.
    Block(u64),
    /// It takes long: others get a turn.
    Turn,
    /// Nothing will help.
    Damage(Damage),
}

impl From<Damage> for Want {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// Clusters that lost one reference in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unref {
    /// First cluster.
    pub(crate) cluster: u64,
    /// How many.
    pub(crate) count: u64,
    /// They may be given back to the file when they are free. Not so where other data may share them.
    pub(crate) punch: bool,
}

/// Clusters with a use that does not change by itself: sorted ranges that do not touch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fixed(Vec<Range<u64>>);

impl Fixed {
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    fn overlaps(&self, range: Range<u64>) -> bool {
        let after = self.0.partition_point(|fixed| fixed.end <= range.start);
        self.0.get(after).is_some_and(|fixed| fixed.start < range.end)
    }

    /// A table has moved.
    pub(crate) fn replace(&mut self, old: Range<u64>, new: Range<u64>) {
        let mut ranges = vec![new];
        for range in self.0.drain(..) {
            ranges.push(range.start..range.end.min(old.start));
            ranges.push(range.start.max(old.end)..range.end);
        }
        *self = Self::new(ranges);
    }
}

/// A table of 8-byte words in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) offset: u64,
    pub(crate) entries: u64,
}

/// All that the image's lock guards.
pub(crate) struct Tables {
    pub(crate) layout: Layout,
    pub(crate) cache: Cache,
    pub(crate) epochs: Epochs,
    pub(crate) busy: Busy,
    pub(crate) loading: OffsetMap<Option<Arc<Event>>>,
    pub(crate) l1: Table,
    pub(crate) reftable: Table,
    /// Host clusters that hold what is neither in the cache nor guest data: header, L1, refcount, snapshot and bitmap tables.
    pub(crate) fixed: Fixed,
    /// All clusters before this one are in use, as far as is known.
    pub(crate) free_hint: u64,
    /// This cluster and all after it were never used since the file grew over them: they read as zeroes.
    pub(crate) fresh_from: u64,
    /// Unreferenced since the last cut.
    pub(crate) unreferenced: Vec<Unref>,
    /// Unreferenced durably, waiting for their epoch to end.
    pub(crate) retired: VecDeque<(Past, Vec<Unref>)>,
    /// A commit is on its way.
    pub(crate) committing: bool,
}

impl Tables {
    fn slice_key(&self, at: u64) -> u64 {
        at & !(self.layout.slice_bytes() - 1)
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than a slice, 4 KiB")]
    fn within(&self, at: u64) -> usize {
        (at & (self.layout.slice_bytes() - 1)) as usize
    }

    /// The word at a host offset.
    pub(crate) fn word(&mut self, kind: Kind, at: u64) -> Result<u64, Want> {
        let (key, within) = (self.slice_key(at), self.within(at));
        let slice = self.cache.get(key, kind).map_err(|_| Damage::Overlap(key))?;
        let slice = slice.ok_or(Want::Slice(key, kind))?;
        let bytes = slice.get(within..within + 8).and_then(|bytes| bytes.try_into().ok());
        Ok(bytes.map_or(0, u64::from_be_bytes))
    }

    /// The word at a host offset, if it is in memory, and of this kind.
    #[inline]
    pub(crate) fn peek(&mut self, kind: Kind, at: u64) -> Option<u64> {
        let (key, within) = (self.slice_key(at), self.within(at));
        let slice = self.cache.get(key, kind).ok().flatten()?;
        let bytes = slice.get(within..)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*bytes))
    }

    /// Sets the word at a host offset.
    pub(crate) fn set_word(&mut self, kind: Kind, at: u64, word: u64) -> Result<(), Want> {
        let (key, within) = (self.slice_key(at), self.within(at));
        let slice = self.cache.change(key, kind).map_err(|_| Damage::Overlap(key))?;
        let slice = slice.ok_or(Want::Slice(key, kind))?;
        if let Some(bytes) = slice.get_mut(within..within + 8) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Ok(())
    }

    /// A refcount block's slice, and the number of its first refcount in the block. The refcounts of `cluster` are in it.
    pub(crate) fn refcount_slice(&self, block: u64, cluster: u64) -> (u64, u64, u64) {
        let per_slice = (self.layout.slice_bytes() * 8) >> self.layout.refcount_order;
        let within = cluster % self.layout.refblock_entries();
        let slice = within / per_slice;
        (block + slice * self.layout.slice_bytes(), within % per_slice, per_slice)
    }

    /// Where a refcount block is, by its number; 0 for none.
    pub(crate) fn refblock(&mut self, number: u64) -> Result<u64, Want> {
        if number >= self.reftable.entries {
            return Ok(0);
        }
        let at = self.reftable.offset + number * 8;
        let word = self.word(Kind::Reftable, at)?;
        let offset = word & !511;
        if self.layout.in_cluster(offset) != 0 || offset >= HOST_END {
            return Err(Damage::Outside(word).into());
        }
        self.guard_table(offset)?;
        Ok(offset)
    }

    /// The entry of the L1 table for a guest offset.
    pub(crate) fn l1_entry(&mut self, guest: u64) -> Result<L1Entry, Want> {
        let index = self.layout.l1_index(guest);
        if index >= self.l1.entries {
            return Err(Damage::Outside(self.l1.offset).into());
        }
        let word = self.word(Kind::L1, self.l1.offset + index * 8)?;
        let entry = L1Entry::decode(word, self.layout).map_err(|source| Damage::Entry { guest, source })?;
        self.guard_table(entry.offset)?;
        Ok(entry)
    }

    /// The entry for a guest offset of the L2 table at `table`.
    pub(crate) fn l2_entry(&mut self, table: u64, guest: u64) -> Result<L2Entry, Want> {
        let at = table + self.layout.l2_index(guest) * self.layout.l2_entry_bytes();
        let word = self.word(Kind::L2, at)?;
        let bitmap = if self.layout.extended_l2 {
            self.word(Kind::L2, at + 8)?
        } else {
            0
        };
        let entry = L2Entry::decode(word, bitmap, self.layout);
        let entry = entry.map_err(|source| Want::from(Damage::Entry { guest, source }))?;
        match entry.place {
            Place::At { host, .. } if host >= HOST_END => {
                let source = EntryError::Misaligned(word);
                Err(Damage::Entry { guest, source }.into())
            }
            _ => Ok(entry),
        }
    }

    /// Sets the entry for a guest offset of the L2 table at `table`; what it referred to loses that reference.
    pub(crate) fn link(&mut self, table: u64, guest: u64, entry: L2Entry) -> Result<(), Want> {
        let old = self.l2_entry(table, guest)?;
        self.guard_old(old.place, entry.place)?;
        let at = table + self.layout.l2_index(guest) * self.layout.l2_entry_bytes();
        let (word, bitmap) = entry.encode(self.layout);
        self.set_word(Kind::L2, at, word)?;
        if self.layout.extended_l2 {
            self.set_word(Kind::L2, at + 8, bitmap)?;
        }
        self.drop_place(old.place, entry.place);
        Ok(())
    }

    /// Refuses to take the reference to `old` away, unless `new` is the same, where `old` is a table: it would be released.
    pub(crate) fn guard_old(&self, old: Place, new: Place) -> Result<(), Damage> {
        match (old, new) {
            (Place::At { host: old, .. }, Place::At { host: new, .. }) if old == new => Ok(()),
            (Place::At { host, .. }, _) => self.guard(host, self.layout.cluster_bytes()),
            (Place::Compressed(data), _) => self.guard(data.offset, data.len),
            (Place::Nowhere, _) => Ok(()),
        }
    }

    /// Refuses a table where one is that is never found this way.
    fn guard_table(&self, offset: u64) -> Result<(), Damage> {
        let cluster = offset >> self.layout.cluster_bits;
        match offset != 0 && self.fixed.overlaps(cluster..cluster + 1) {
            true => Err(Damage::Overlap(offset)),
            false => Ok(()),
        }
    }

    /// Whether these clusters hold something that is never given back.
    pub(crate) fn is_fixed(&self, cluster: u64, count: u64) -> bool {
        self.fixed.overlaps(cluster..cluster.saturating_add(count))
    }

    /// Notes that `old` lost a reference, unless `new` is the same.
    fn drop_place(&mut self, old: Place, new: Place) {
        let bits = self.layout.cluster_bits;
        match (old, new) {
            (Place::At { host: old, .. }, Place::At { host: new, .. }) if old == new => {}
            (Place::At { host, .. }, _) if !self.layout.external_data => self.unreference(host >> bits, 1, true),
            (Place::Compressed(data), _) => {
                let (first, last) = (data.offset >> bits, (data.offset + data.len - 1) >> bits);
                self.unreference(first, last - first + 1, false);
            }
            _ => {}
        }
    }

    /// Notes that clusters lost a reference: they are released after the commit that makes it durable.
    pub(crate) fn unreference(&mut self, cluster: u64, count: u64, punch: bool) {
        if let Some(last) = self.unreferenced.last_mut()
            && last.cluster + last.count == cluster
            && last.punch == punch
        {
            last.count += count;
        } else {
            self.unreferenced.push(Unref { cluster, count, punch });
        }
    }

    /// Whether guest data in these clusters would be over a table.
    pub(crate) fn overlaps(&self, cluster: u64, count: u64) -> bool {
        let end = cluster.saturating_add(count);
        self.fixed.overlaps(cluster..end) || (cluster..end).any(|cluster| self.cache.is_table(cluster))
    }

    /// Whether a flush has more to do than to sync.
    pub(crate) fn is_settled(&self, with_refcounts: bool) -> bool {
        let clean = (!with_refcounts || !self.cache.is_dirty(0)) && !self.cache.is_dirty(1) && !self.cache.is_dirty(2);
        clean && !self.committing && self.unreferenced.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_ranges_merge_and_move() {
        let mut fixed = Fixed::new(vec![7..9, 0..1, 1..2, 5..5, 8..12]);
        let hits = |fixed: &Fixed| (0..16).filter(|&i| fixed.overlaps(i..i + 1)).collect::<Vec<u64>>();
        assert_eq!(hits(&fixed), [0, 1, 7, 8, 9, 10, 11]);
        fixed.replace(8..10, 3..5);
        assert_eq!(hits(&fixed), [0, 1, 3, 4, 7, 10, 11]);
        assert!(fixed.overlaps(5..8) && !fixed.overlaps(5..7));
    }
}
