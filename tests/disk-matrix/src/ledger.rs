//! What a disk may hold after a crash: for each sector what was flushed, or anything that was begun later.

use std::collections::HashMap;

use anyhow::{Result, bail};

use crate::shadow::SECTOR;

/// One change of the disk.
struct Entry {
    bytes: Vec<u8>,
    offset: usize,
    /// A discard: zero or as before, even when it has completed.
    hint: bool,
    done: bool,
    durable: bool,
}

/// All changes since the contents were known.
pub struct Ledger {
    known: Vec<u8>,
    entries: Vec<Entry>,
    by_number: HashMap<u64, usize>,
    /// Flushes on their way, and how far they reach: what had completed when they began.
    flushes: HashMap<u64, Vec<usize>>,
}

impl Ledger {
    /// Nothing has changed since the disk held `known`.
    pub fn new(known: Vec<u8>) -> Self {
        Self {
            known,
            entries: Vec::new(),
            by_number: HashMap::new(),
            flushes: HashMap::new(),
        }
    }

    /// A change was begun.
    pub fn begin(&mut self, number: u64, offset: usize, bytes: Vec<u8>, hint: bool) {
        self.by_number.insert(number, self.entries.len());
        self.entries.push(Entry {
            bytes,
            offset,
            hint,
            done: false,
            durable: false,
        });
    }

    /// It has completed.
    pub fn done(&mut self, number: u64) {
        if let Some(entry) = self
            .by_number
            .get(&number)
            .and_then(|&index| self.entries.get_mut(index))
        {
            entry.done = true;
        }
    }

    /// A flush was begun.
    pub fn begin_flush(&mut self, number: u64) {
        let covered = self.entries.iter().enumerate().filter(|(_, entry)| entry.done);
        let covered = covered.map(|(index, _)| index).collect();
        self.flushes.insert(number, covered);
    }

    /// It has completed.
    pub fn flush_done(&mut self, number: u64) {
        for index in self.flushes.remove(&number).unwrap_or_default() {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.durable = true;
            }
        }
    }

    /// Changes begun so far.
    pub fn changes(&self) -> usize {
        self.entries.len()
    }

    /// Whether every sector of `found` is one of those that may be there.
    pub fn check(&self, found: &[u8]) -> Result<()> {
        if found.len() != self.known.len() {
            bail!("the disk has {} bytes instead of {}", found.len(), self.known.len());
        }
        let sectors = self.known.len() / SECTOR;
        // For each sector: the changes of it, in order; they never were in flight together.
        let mut changes: Vec<Vec<usize>> = vec![Vec::new(); sectors];
        for (index, entry) in self.entries.iter().enumerate() {
            let first = entry.offset / SECTOR;
            for list in changes.iter_mut().skip(first).take(entry.bytes.len() / SECTOR) {
                if entry.durable && !entry.hint {
                    list.clear();
                }
                list.push(index);
            }
        }
        let mut lost = Vec::new();
        for (sector, (now, list)) in found.chunks(SECTOR).zip(&changes).enumerate() {
            if !self.may_be(sector, now, list) {
                lost.push(sector * SECTOR);
            }
        }
        match lost.first() {
            None => Ok(()),
            Some(first) => bail!(
                "{} sectors are neither what was flushed nor anything written later, the first at byte {first}",
                lost.len()
            ),
        }
    }

    fn may_be(&self, sector: usize, now: &[u8], list: &[usize]) -> bool {
        let at = sector * SECTOR;
        let settled = list
            .first()
            .and_then(|&index| self.entries.get(index))
            .is_some_and(|entry| entry.durable && !entry.hint);
        if !settled && self.known.get(at..at + SECTOR) == Some(now) {
            return true;
        }
        list.iter().filter_map(|&index| self.entries.get(index)).any(|entry| {
            let from = at.saturating_sub(entry.offset);
            entry.bytes.get(from..from + SECTOR) == Some(now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(value: u8) -> Vec<u8> {
        vec![value; SECTOR]
    }

    #[test]
    fn flushed_changes_must_be_there_and_others_may() {
        let mut ledger = Ledger::new(vec![0; 2 * SECTOR]);
        ledger.begin(1, 0, sector(1), false);
        ledger.begin(2, SECTOR, sector(2), false);
        ledger.done(1);
        ledger.begin_flush(3);
        ledger.done(2);
        let ok = |ledger: &Ledger, a, b| ledger.check(&[sector(a), sector(b)].concat()).is_ok();
        assert!(ok(&ledger, 0, 0), "nothing was flushed yet");
        ledger.flush_done(3);
        assert!(!ok(&ledger, 0, 0), "the flush covered the first write");
        assert!(
            ok(&ledger, 1, 0) && ok(&ledger, 1, 2),
            "the second had not completed when it began"
        );
        ledger.begin(4, 0, sector(4), false);
        assert!(ok(&ledger, 1, 0) && ok(&ledger, 4, 0) && !ok(&ledger, 3, 0));
        ledger.begin(5, 0, sector(0), true);
        ledger.done(5);
        ledger.begin_flush(6);
        ledger.flush_done(6);
        assert!(
            ok(&ledger, 0, 2) && ok(&ledger, 1, 2) && ok(&ledger, 4, 2),
            "a discard promises nothing"
        );
        assert!(!ok(&ledger, 1, 0), "the second write was flushed by now");
    }
}
