//! Slices of metadata in memory.
//!
//! Invariants: a slice in the cache is what the image means now; one that is dirty (changed since it was last handed to a
//! commit) or being written stays until the write is over, so that nobody loads what is older; one cluster is never
//! looked at as two kinds of table. Lookups are one hash; eviction is a clock over clean slices.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// What a slice belongs to, which is also the order in which commits write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A refcount block.
    Refblock,
    /// The refcount table.
    Reftable,
    /// An L2 table.
    L2,
    /// The active L1 table.
    L1,
}

impl Kind {
    /// Which of a commit's steps writes it.
    const fn step(self) -> usize {
        match self {
            Self::Refblock => 0,
            Self::Reftable => 1,
            Self::L2 | Self::L1 => 2,
        }
    }
}

struct Slice {
    bytes: Box<[u8]>,
    kind: Kind,
    dirty: bool,
    writing: bool,
    used: bool,
}

/// Offsets are spread well enough by one multiplication (Knuth's, 64 bits).
#[derive(Default)]
pub(crate) struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

pub(crate) type OffsetMap<T> = HashMap<u64, T, BuildHasherDefault<OffsetHasher>>;

/// A slice as a commit writes it: offset in the file, and what was in it at the cut.
pub(crate) type Piece = (u64, Box<[u8]>);

/// A changed slice of another kind is where this one should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Clash;

/// All slices of an image, by their offset in the file.
pub(crate) struct Cache {
    slices: OffsetMap<Slice>,
    /// Cached slices per cluster: what no guest data may be written over.
    clusters: OffsetMap<u32>,
    clock: VecDeque<u64>,
    dirty: [Vec<u64>; 3],
    slice_bytes: u64,
    cluster_bits: u32,
    limit: usize,
}

impl Cache {
    /// Of slices of `slice_bytes`, holding about `cache_bytes`.
    pub(crate) fn new(slice_bytes: u64, cluster_bits: u32, cache_bytes: u64) -> Self {
        Self {
            slices: OffsetMap::default(),
            clusters: OffsetMap::default(),
            clock: VecDeque::new(),
            dirty: Default::default(),
            slice_bytes,
            cluster_bits,
            limit: usize::try_from(cache_bytes / slice_bytes).unwrap_or(usize::MAX).max(64),
        }
    }

    /// The slice at `key`. `None` if it has to be loaded.
    pub(crate) fn get(&mut self, key: u64, kind: Kind) -> Result<Option<&[u8]>, Clash> {
        match self.slices.get_mut(&key) {
            None => Ok(None),
            Some(slice) if slice.kind != kind => Err(Clash),
            Some(slice) => {
                slice.used = true;
                Ok(Some(&slice.bytes))
            }
        }
    }

    /// The slice at `key`, about to be changed. `None` if it has to be loaded.
    pub(crate) fn change(&mut self, key: u64, kind: Kind) -> Result<Option<&mut [u8]>, Clash> {
        match self.slices.get_mut(&key) {
            None => Ok(None),
            Some(slice) if slice.kind != kind => Err(Clash),
            Some(slice) => {
                slice.used = true;
                if !slice.dirty {
                    slice.dirty = true;
                    if let Some(list) = self.dirty.get_mut(kind.step()) {
                        list.push(key);
                    }
                }
                Ok(Some(&mut slice.bytes))
            }
        }
    }

    /// Takes in what was loaded, unless it is here.
    pub(crate) fn insert(&mut self, key: u64, kind: Kind, bytes: Box<[u8]>) {
        if self.slices.contains_key(&key) {
            return;
        }
        self.make_room();
        self.slices.insert(
            key,
            Slice {
                bytes,
                kind,
                dirty: false,
                writing: false,
                used: true,
            },
        );
        *self.clusters.entry(key >> self.cluster_bits).or_default() += 1;
        self.clock.push_back(key);
    }

    pub(crate) fn contains(&self, key: u64) -> bool {
        self.slices.contains_key(&key)
    }

    fn make_room(&mut self) {
        let mut looks = self.clock.len().min(4096);
        while self.slices.len() >= self.limit && looks > 0 {
            looks -= 1;
            let Some(key) = self.clock.pop_front() else { break };
            match self.slices.get_mut(&key) {
                Some(slice) if slice.dirty || slice.writing || slice.used => {
                    slice.used = false;
                    self.clock.push_back(key);
                }
                Some(_) => self.remove(key),
                None => {}
            }
        }
    }

    fn remove(&mut self, key: u64) {
        if self.slices.remove(&key).is_some() {
            let cluster = key >> self.cluster_bits;
            if let Some(count) = self.clusters.get_mut(&cluster) {
                *count -= 1;
                if *count == 0 {
                    self.clusters.remove(&cluster);
                }
            }
        }
    }

    /// Forgets a cluster that is no table any more, or becomes one: nothing in it is worth writing.
    pub(crate) fn forget(&mut self, cluster: u64) {
        if !self.clusters.contains_key(&cluster) {
            return;
        }
        let start = cluster << self.cluster_bits;
        let end = start + (1 << self.cluster_bits);
        let mut key = start;
        while key < end {
            self.remove(key);
            key += self.slice_bytes;
        }
    }

    /// Whether part of this cluster is known to be a table.
    pub(crate) fn is_table(&self, cluster: u64) -> bool {
        self.clusters.contains_key(&cluster)
    }

    /// Bytes that wait to be written.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty.iter().map(|list| list.len() as u64).sum::<u64>() * self.slice_bytes
    }

    /// Whether refcount blocks (step 0), the refcount table (1), or L1 and L2 tables (2) wait to be written.
    pub(crate) fn is_dirty(&self, step: usize) -> bool {
        self.dirty.get(step).is_some_and(|list| !list.is_empty())
    }

    /// Whether so much is dirty that a commit should make it clean.
    pub(crate) fn is_pressed(&self) -> bool {
        self.dirty_bytes() > self.limit as u64 * self.slice_bytes / 2
    }

    /// Copies of all that is dirty in a step, in the order of the file. Until [`Cache::written`] they stay here.
    pub(crate) fn cut(&mut self, step: usize) -> Vec<Piece> {
        let mut keys = self.dirty.get_mut(step).map(std::mem::take).unwrap_or_default();
        keys.sort_unstable();
        keys.dedup();
        let mut pieces = Vec::with_capacity(keys.len());
        for key in keys {
            // Forgotten ones are gone, and one that came back is clean until it is changed.
            if let Some(slice) = self
                .slices
                .get_mut(&key)
                .filter(|slice| slice.dirty && slice.kind.step() == step)
            {
                slice.dirty = false;
                slice.writing = true;
                pieces.push((key, slice.bytes.clone()));
            }
        }
        pieces
    }

    /// A commit has written these slices, or has failed to and they are dirty again.
    pub(crate) fn written(&mut self, keys: impl Iterator<Item = u64>, success: bool) {
        for key in keys {
            if let Some(slice) = self.slices.get_mut(&key) {
                slice.writing = false;
                if !success && !slice.dirty {
                    slice.dirty = true;
                    if let Some(list) = self.dirty.get_mut(slice.kind.step()) {
                        list.push(key);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        Cache::new(512, 9, 64 * 512)
    }

    fn put(cache: &mut Cache, key: u64, kind: Kind) {
        cache.insert(key, kind, vec![0; 512].into());
    }

    #[test]
    fn clean_slices_leave_and_dirty_ones_stay() {
        let mut cache = cache();
        for i in 0..1000 {
            put(&mut cache, i * 512, Kind::L2);
            if i % 100 == 0 {
                cache.change(i * 512, Kind::L2).unwrap().unwrap()[0] = 7;
            }
        }
        assert!(cache.slices.len() <= 64 && cache.clock.len() <= 128);
        assert_eq!(cache.dirty_bytes(), 10 * 512);
        let pieces = cache.cut(2);
        assert_eq!((pieces.len(), pieces[3].0, pieces[3].1[0]), (10, 300 * 512, 7));
        for i in 1000..2000 {
            put(&mut cache, i * 512, Kind::L2);
        }
        assert!(cache.contains(0), "what is being written stays");
        cache.written(pieces.iter().map(|piece| piece.0), false);
        assert_eq!(cache.cut(2).len(), 10, "what could not be written is dirty again");
        cache.written(pieces.iter().map(|piece| piece.0), true);
        assert!(!cache.is_dirty(2));
    }

    #[test]
    fn a_cluster_is_one_kind_of_table_until_it_is_forgotten() {
        let mut cache = cache();
        put(&mut cache, 512, Kind::Refblock);
        assert_eq!(cache.get(512, Kind::L2), Err(Clash));
        assert!(cache.is_table(1) && !cache.is_table(2));
        cache.change(512, Kind::Refblock).unwrap();
        cache.forget(1);
        assert!(!cache.is_table(1) && cache.cut(0).is_empty());
        put(&mut cache, 512, Kind::L2);
        assert_eq!(cache.get(512, Kind::L2).unwrap().unwrap().len(), 512);
    }
}
