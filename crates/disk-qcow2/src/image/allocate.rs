//! Host clusters for new uses, and the file long enough for them.
//!
//! Invariants: a cluster is claimed by raising its refcount from zero under the lock, so no two claim the same; a claim that
//! is dropped without being linked stays raised (a leak, never a second use); no cluster that is known to be a table is ever
//! claimed, whatever its refcount says. Claims are first-fit from a hint below which nothing is free.

use disk::{DiskErrorKind, DiskIo};

use super::cache::Kind;
use super::fault::{Damage, Fault};
use super::state::Engine;
use super::tables::{Tables, Want};
use crate::meta::layout::HOST_END;
use crate::meta::refcount;

/// Smallest and largest step in which the file grows, bytes.
const GROWTH_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=64 << 20;

/// Slices of refcounts that one look under the lock goes through.
const SLICES_AT_ONCE: u32 = 64;

/// Clusters that may be counted behind the end of the file (a crash leaves a few); more are a lie.
const STRAY_CLUSTERS: u64 = 1 << 20;

/// Consecutive clusters, claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// First cluster.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
    /// They read as zeroes.
    pub(crate) fresh: bool,
}

impl Tables {
    /// Claims up to `most` consecutive free clusters: the first that are found, and at least one.
    pub(crate) fn claim(&mut self, most: u64) -> Result<Claim, Want> {
        let order = self.layout.refcount_order;
        for _ in 0..SLICES_AT_ONCE {
            let cluster = self.free_hint;
            if cluster > self.fresh_from.saturating_add(STRAY_CLUSTERS)
                || cluster >= HOST_END >> self.layout.cluster_bits
            {
                return Err(Damage::Refcount(cluster << self.layout.cluster_bits).into());
            }
            let number = cluster / self.layout.refblock_entries();
            let block = self.refblock(number)?;
            if block == 0 {
                return Err(Want::Block(number));
            }
            let (key, start, per_slice) = self.refcount_slice(block, cluster);
            let slice = self.cache.get(key, Kind::Refblock).map_err(|_| Damage::Overlap(key))?;
            let slice = slice.ok_or(Want::Slice(key, Kind::Refblock))?;
            let is_free = |index: &u64| refcount::get(slice, order, usize::try_from(*index).unwrap_or(0)) == 0;
            let found = refcount::first_free(slice, order, usize::try_from(start).unwrap_or(0));
            let Some(found) = found.map(|found| found as u64) else {
                self.free_hint = cluster + (per_slice - start);
                continue;
            };
            let count = (found..per_slice.min(found.saturating_add(most)))
                .take_while(is_free)
                .count() as u64;
            let first = cluster + (found - start);
            self.free_hint = first;
            if self.overlaps(first, count) {
                return Err(Damage::Overlap(first << self.layout.cluster_bits).into());
            }
            self.set_refcounts(first, count, 1)?;
            let fresh = first >= self.fresh_from;
            self.free_hint = first + count;
            self.fresh_from = self.fresh_from.max(first + count);
            return Ok(Claim { first, count, fresh });
        }
        Err(Want::Turn)
    }

    /// The refcount of a cluster.
    pub(crate) fn refcount(&mut self, cluster: u64) -> Result<u64, Want> {
        let block = self.refblock(cluster / self.layout.refblock_entries())?;
        if block == 0 {
            return Ok(0);
        }
        let (key, index, _) = self.refcount_slice(block, cluster);
        let slice = self.cache.get(key, Kind::Refblock).map_err(|_| Damage::Overlap(key))?;
        let slice = slice.ok_or(Want::Slice(key, Kind::Refblock))?;
        Ok(refcount::get(
            slice,
            self.layout.refcount_order,
            usize::try_from(index).unwrap_or(0),
        ))
    }

    /// Sets the refcounts of clusters that have one slice in common (or of one).
    pub(crate) fn set_refcounts(&mut self, first: u64, count: u64, value: u64) -> Result<(), Want> {
        let block = self.refblock(first / self.layout.refblock_entries())?;
        if block == 0 {
            return Err(Damage::Refcount(first << self.layout.cluster_bits).into());
        }
        let (key, index, _) = self.refcount_slice(block, first);
        let order = self.layout.refcount_order;
        let slice = self
            .cache
            .change(key, Kind::Refblock)
            .map_err(|_| Damage::Overlap(key))?;
        let slice = slice.ok_or(Want::Slice(key, Kind::Refblock))?;
        for index in index..index + count {
            refcount::set(slice, order, usize::try_from(index).unwrap_or(usize::MAX), value);
        }
        if value == 0 {
            self.free_hint = self.free_hint.min(first);
        }
        Ok(())
    }
}

impl Engine {
    /// Claims up to `most` consecutive clusters, and makes the file long enough for them.
    pub(crate) async fn allocate(&self, most: u64) -> Result<Claim, Fault> {
        let claim = loop {
            match self.claim(most).await? {
                Ok(claim) => break claim,
                Err(number) => {
                    let _structure = self.image.structure.lock().await;
                    self.make_refblock(number).await?;
                }
            }
        };
        self.covered(claim).await
    }

    /// As [`Engine::allocate`], for those who hold the structure lock.
    pub(crate) async fn allocate_in_structure(&self, most: u64) -> Result<Claim, Fault> {
        let claim = loop {
            match self.claim(most).await? {
                Ok(claim) => break claim,
                Err(number) => self.make_refblock(number).await?,
            }
        };
        self.covered(claim).await
    }

    /// `Ok(Err(number))` if that refcount block has to be made first.
    async fn claim(&self, most: u64) -> Result<Result<Claim, u64>, Fault> {
        self.step(|tables| match tables.claim(most) {
            Err(Want::Block(number)) => Ok(Err(number)),
            other => other.map(Ok),
        })
        .await
    }

    async fn covered(&self, claim: Claim) -> Result<Claim, Fault> {
        let end = (claim.first + claim.count) << self.image.layout.cluster_bits;
        match self.cover(&*self.file, end).await {
            Ok(()) => Ok(claim),
            Err(fault) => {
                self.unclaim(claim).await?;
                Err(fault)
            }
        }
    }

    /// Gives back what was claimed and not used.
    pub(crate) async fn unclaim(&self, claim: Claim) -> Result<(), Fault> {
        self.step(|tables| tables.set_refcounts(claim.first, claim.count, 0))
            .await
    }

    /// Makes the file (or the data file) at least `end` bytes long, in steps.
    pub(crate) async fn cover(&self, disk: &dyn DiskIo, end: u64) -> Result<(), Fault> {
        if disk.geometry().size_bytes >= end {
            return Ok(());
        }
        let _growing = self.image.growing.lock().await;
        let size = disk.geometry().size_bytes;
        if size >= end {
            return Ok(());
        }
        let step = (size / 8).clamp(*GROWTH_BYTES.start(), *GROWTH_BYTES.end());
        let roomy = (end + step).next_multiple_of(self.image.layout.cluster_bytes().max(4096));
        if disk.grow(roomy).await.is_ok() {
            return Ok(());
        }
        disk.grow(end.next_multiple_of(512))
            .await
            .map_err(|error| match error.kind() {
                DiskErrorKind::Unsupported => Fault::Kind(DiskErrorKind::NoSpace),
                _ => Fault::Below(error),
            })
    }
}
