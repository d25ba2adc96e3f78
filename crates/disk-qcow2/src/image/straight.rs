//! Requests that are one transfer: nearly all, once a disk is in use. What they need is found out in one synchronous look, so that
//! the future of each is small, and nothing of what the others take (reasons, steps made again, futures within) is in it.

use std::sync::atomic::Ordering;

use disk::Access;

use super::cache::Kind;
use super::epoch::Stay;
use super::map::{Run, What};
use super::state::Engine;
use super::tables::Tables;
use crate::meta::entry::{L1Entry, L2Entry};

impl Tables {
    /// Where a range inside of one cluster is in the file, and whether it may be written in place, if the cluster holds data and all
    /// that tells it is in memory. `None` says nothing: [`Tables::run`] does.
    fn spot(&mut self, guest: u64, len: u64) -> Option<(u64, bool)> {
        let layout = self.layout;
        let (within, index) = (layout.in_cluster(guest), layout.l1_index(guest));
        if len > layout.cluster_bytes() - within || index >= self.l1.entries {
            return None;
        }
        let word = self.peek(Kind::L1, self.l1.offset + index * 8)?;
        let table = L1Entry::decode(word, layout).ok()?.offset;
        if table == 0 || self.is_fixed(table >> layout.cluster_bits, 1) {
            return None;
        }
        let word = self.peek(Kind::L2, table + layout.l2_index(guest) * layout.l2_entry_bytes())?;
        let (host, copied) = L2Entry::plain(word, layout)?;
        Some((host + within, copied))
    }
}

impl Engine {
    /// What a read consists of, if it is of one kind and known without loading anything. It has entered its epoch then.
    pub(crate) fn straight_read(&self, offset: u64, len: u64) -> Option<(Stay, Run)> {
        if !self.is_within(offset, len) {
            return None;
        }
        let mut tables = self.image.tables();
        let run = match tables.spot(offset, len) {
            Some((host, copied)) => Run {
                len,
                what: What::Data { host, copied },
            },
            None => tables.run(offset, len).ok().filter(|run| run.len == len)?,
        };
        Some((tables.epochs.enter(), run))
    }

    /// Where in the file (or the data file) a write goes, if all of it has one place of its own there, and the image needs no
    /// preparation. It has entered its epoch then.
    pub(crate) fn straight_write(&self, offset: u64, len: u64) -> Option<(Stay, u64)> {
        let image = &*self.image;
        let is_ready = image.access == Access::ReadWrite
            && image.prepared.load(Ordering::Acquire)
            && !image.poisoned.load(Ordering::Acquire);
        if !is_ready || !self.is_within(offset, len) {
            return None;
        }
        // The last cluster of a file may have been cut short.
        let there = self.store().geometry().size_bytes;
        let mut tables = image.tables();
        let (host, found) = match tables.spot(offset, len) {
            Some((host, copied)) => (copied && tables.guard(host, len).is_ok()).then_some((host, len))?,
            None => tables.place(offset, len).ok().flatten()?,
        };
        (found == len && host + len <= there).then(|| (tables.epochs.enter(), host))
    }

    /// Whether this is a range of the disk, and not empty.
    fn is_within(&self, offset: u64, len: u64) -> bool {
        let whole = (offset | len).is_multiple_of(512);
        let end = offset.checked_add(len);
        whole && len > 0 && end.is_some_and(|end| end <= self.image.size_bytes())
    }
}
