//! Releasing clusters that nothing durable refers to any more.
//!
//! Invariants: a cluster comes here after the commit that made its unreferencing durable, and leaves once its epoch is over
//! ([`super::epoch`]); it is punched out of the file while its refcount still keeps others from claiming it, and only when it
//! was the last reference; then its refcount is lowered in memory, and the next commit writes that. A crash in between leaks
//! it. Only the holder of the commit lock releases.

use super::cache::Kind;
use super::fault::{Damage, Fault};
use super::state::Engine;
use super::tables::{Tables, Unref, Want};
use crate::meta::refcount;

/// Neighbours with the same number of references.
struct Alike {
    count: u64,
    refcount: u64,
}

impl Tables {
    /// How many of `most` clusters from `first` on, in one slice, have the refcount that `first` has.
    fn alike(&mut self, first: u64, most: u64) -> Result<Alike, Want> {
        let order = self.layout.refcount_order;
        let refcount = self.refcount(first)?;
        let block = self.refblock(first / self.layout.refblock_entries())?;
        if block == 0 {
            return Ok(Alike { count: 1, refcount: 0 });
        }
        let (key, start, per_slice) = self.refcount_slice(block, first);
        let slice = self.cache.get(key, Kind::Refblock).map_err(|_| Damage::Overlap(key))?;
        let slice = slice.ok_or(Want::Slice(key, Kind::Refblock))?;
        let same = |index: &u64| refcount::get(slice, order, usize::try_from(*index).unwrap_or(0)) == refcount;
        let count = (start..per_slice.min(start.saturating_add(most)))
            .take_while(same)
            .count() as u64;
        Ok(Alike {
            count: count.max(1),
            refcount,
        })
    }
}

impl Engine {
    /// Releases all that waited for epochs that are over.
    pub(crate) async fn release(&self) {
        loop {
            let batch = {
                let mut tables = self.image.tables();
                let over = tables.retired.front_mut().is_some_and(|(past, _)| past.is_over());
                if over { tables.retired.pop_front() } else { None }
            };
            let Some((_, runs)) = batch else { return };
            for run in runs {
                if let Err(fault) = self.release_run(run).await {
                    let error = fault.of(disk::DiskOp::Discard, 0, 0);
                    tracing::warn!(image = self.image.name, %error, "clusters leak: they can not be released");
                }
            }
        }
    }

    async fn release_run(&self, run: Unref) -> Result<(), Fault> {
        let bits = self.image.layout.cluster_bits;
        let end = run.cluster + run.count;
        let mut first = run.cluster;
        if !run.punch {
            self.image.inflated().clear();
        }
        if self.image.tables().is_fixed(first, run.count) {
            return Err(Damage::Overlap(first << bits).into());
        }
        while first < end {
            // A count above one may be raised meanwhile by who fills a cluster, so it is lowered in the step that reads it.
            let alike = self
                .step(|tables| {
                    let alike = tables.alike(first, end - first)?;
                    if alike.refcount > 1 {
                        tables.set_refcounts(first, alike.count, alike.refcount - 1)?;
                    }
                    Ok(alike)
                })
                .await?;
            match alike.refcount {
                0 => tracing::warn!(
                    image = self.image.name,
                    offset = first << bits,
                    clusters = alike.count,
                    "a cluster that was in use had no refcount: check the image"
                ),
                1 => {
                    if run.punch {
                        self.punch(first, alike.count).await;
                    }
                    self.step(|tables| {
                        tables.set_refcounts(first, alike.count, 0)?;
                        (first..first + alike.count).for_each(|cluster| tables.cache.forget(cluster));
                        Ok(())
                    })
                    .await?;
                }
                _ => {}
            }
            first += alike.count;
        }
        Ok(())
    }

    /// Gives clusters back to the file system. A hint: that it fails does no harm.
    async fn punch(&self, first: u64, count: u64) {
        let bits = self.image.layout.cluster_bits;
        let geometry = self.file.geometry();
        let (start, end) = (first << bits, ((first + count) << bits).min(geometry.size_bytes));
        if start < end && geometry.discard != disk::Discard::Unsupported {
            let _ = self.file.discard(start, end - start).await;
        }
    }
}
