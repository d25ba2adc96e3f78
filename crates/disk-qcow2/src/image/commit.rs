//! Commits: how changed metadata becomes durable.
//!
//! One commit at a time takes a cut of all changed slices, consistent because it is taken under the lock, and writes it:
//!
//! 1. refcount blocks, then sync. The sync also makes durable all guest data and all new tables that were written before the
//!    cut. Raised refcounts come before references, so a crash leaves leaks.
//! 2. the refcount table, if it changed, then sync: the blocks it now refers to are durable, and clusters are counted
//!    before anything durable refers to them.
//! 3. L2 and L1 tables, then sync. Whatever they refer to is durable; their order among each other does not matter, since a
//!    new L2 table is durable as empty, or as the copy it began as, since step 1.
//! 4. What lost its last reference by this is released ([`super::release`]): lowered refcounts come after references.
//!
//! A write that fails leaves its slices changed, so that the next commit writes them. A sync that fails poisons the image: the
//! kernel may have dropped what was written, and nothing tells what.

use std::sync::atomic::Ordering;

use disk::{DiskFuture, Transferred};
use guestmem::IoBuf;

use super::cache::Piece;
use super::fault::Fault;
use super::parts::join;
use super::state::Engine;
use super::structure::Critical;
use super::tables::Unref;
use crate::meta::header::{Header, incompatible};
use crate::ops::File;

/// Writes of one step that are in flight at once.
const WRITES_AT_ONCE: usize = 32;
/// Slices in one write: 1 MiB of them.
const SLICES_PER_WRITE: usize = 256;
/// Unreferenced runs that make a commit due.
const UNREFERENCED_MAX: usize = 16384;
/// Commits of one close: each releases what the one before unreferenced.
const COMMITS_PER_CLOSE: usize = 4;

struct Cut {
    number: u64,
    steps: [Vec<Piece>; 3],
    unreferenced: Vec<Unref>,
}

impl Engine {
    /// Makes durable what completed before this was called.
    pub(crate) async fn flush(&self) -> Result<(), Fault> {
        self.image.check_sound()?;
        let seen = {
            let tables = self.image.tables();
            let settled = tables.is_settled(!self.image.lazy) && tables.retired.is_empty();
            (!settled).then(|| self.image.cuts.load(Ordering::Relaxed))
        };
        match seen {
            None => self.sync().await,
            Some(seen) => self.commit(seen, false).await,
        }
    }

    /// Commits if so much has changed that it should not wait for the next flush.
    pub(crate) async fn relieve(&self) -> Result<(), Fault> {
        let seen = {
            let tables = self.image.tables();
            let due = tables.cache.is_pressed() || tables.unreferenced.len() > UNREFERENCED_MAX;
            due.then(|| self.image.cuts.load(Ordering::Relaxed))
        };
        match seen {
            None => Ok(()),
            Some(seen) => self.commit(seen, false).await,
        }
    }

    /// Commits everything, late refcounts included.
    pub(crate) async fn commit_all(&self) -> Result<(), Fault> {
        let seen = self.image.cuts.load(Ordering::Relaxed);
        self.commit(seen, true).await
    }

    /// Commits, unless a commit that was begun after cut `seen` has done so meanwhile.
    async fn commit(&self, seen: u64, all: bool) -> Result<(), Fault> {
        let mut done = self.image.commits.lock().await;
        if *done > seen && !all {
            return Ok(());
        }
        self.image.check_sound()?;
        let critical = Critical::new(&self.image);
        let cut = self.cut(all);
        let written = self.write_cut(&cut.steps).await;
        critical.end();
        self.finish(&cut.steps, cut.unreferenced, written.is_ok());
        written?;
        *done = cut.number;
        self.release().await;
        Ok(())
    }

    fn cut(&self, all: bool) -> Cut {
        let mut tables = self.image.tables();
        let number = self.image.cuts.fetch_add(1, Ordering::Relaxed) + 1;
        tables.committing = true;
        let refblocks = if all || !self.image.lazy || tables.cache.is_pressed() {
            tables.cache.cut(0)
        } else {
            Vec::new()
        };
        Cut {
            number,
            steps: [refblocks, tables.cache.cut(1), tables.cache.cut(2)],
            unreferenced: std::mem::take(&mut tables.unreferenced),
        }
    }

    fn finish(&self, steps: &[Vec<Piece>; 3], unreferenced: Vec<Unref>, success: bool) {
        let mut tables = self.image.tables();
        tables.committing = false;
        let keys = steps.iter().flatten().map(|piece| piece.0);
        tables.cache.written(keys, success);
        if !success {
            tables.unreferenced.extend(unreferenced);
        } else if !unreferenced.is_empty() {
            let past = tables.epochs.turn();
            tables.retired.push_back((past, unreferenced));
        }
    }

    async fn write_cut(&self, steps: &[Vec<Piece>; 3]) -> Result<(), Fault> {
        let [refblocks, reftable, maps] = steps;
        self.write_pieces(refblocks).await?;
        self.sync().await?;
        for step in [reftable, maps] {
            if !step.is_empty() {
                self.write_pieces(step).await?;
                self.sync().await?;
            }
        }
        Ok(())
    }

    /// Writes slices, neighbours together.
    async fn write_pieces(&self, pieces: &[Piece]) -> Result<(), Fault> {
        let slice = self.image.layout.slice_bytes();
        let mut runs: Vec<(u64, Vec<IoBuf>)> = Vec::new();
        for (key, bytes) in pieces {
            let buf = IoBuf::from_bytes(bytes)?;
            match runs.last_mut() {
                Some((start, bufs)) if *start + bufs.len() as u64 * slice == *key && bufs.len() < SLICES_PER_WRITE => {
                    bufs.push(buf);
                }
                _ => runs.push((*key, vec![buf])),
            }
        }
        let mut result = Ok(());
        let mut runs = runs.into_iter().peekable();
        while runs.peek().is_some() && result.is_ok() {
            let batch = runs.by_ref().take(WRITES_AT_ONCE);
            let batch: Vec<DiskFuture<'_, Transferred>> = batch.map(|(at, bufs)| self.file.write(at, bufs)).collect();
            for (written, _) in join(batch).await {
                result = result.and(written.map_err(Fault::from));
            }
        }
        result
    }

    /// Makes durable what was written to the file and the data file. A failure poisons the image; the kernel tells it to one of those
    /// who sync at the same time, so another's counts, too.
    pub(crate) async fn sync(&self) -> Result<(), Fault> {
        let mut result = self.file.flush().await;
        if let Some(data) = &self.data {
            result = result.and(data.flush().await);
        }
        if result.is_err() {
            self.image.poisoned.store(true, Ordering::Release);
        }
        result.map_err(Fault::from)?;
        self.image.check_sound()
    }

    /// Writes the header's fields, all of which are in its first sector. Not yet durable.
    pub(crate) async fn write_header(&self, header: &Header) -> Result<(), Fault> {
        Ok(File(&*self.file).write(0, &header.encode()).await?)
    }

    /// Commits everything, and says in the header that the refcounts are right.
    pub(crate) async fn close(&self) -> Result<(), Fault> {
        if self.image.access == disk::Access::ReadOnly || !self.image.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.image.check_sound()?;
        self.leave_filling().await?;
        for _ in 0..COMMITS_PER_CLOSE {
            self.commit_all().await?;
            let tables = self.image.tables();
            if tables.is_settled(true) && tables.retired.is_empty() {
                break;
            }
        }
        if self.image.lazy {
            let mut header = self.image.header.lock().await;
            let mut new = header.clone();
            new.incompatible &= !incompatible::DIRTY;
            // From here on the next change says again that it is one.
            self.image.prepared.store(false, Ordering::Release);
            self.write_header(&new).await?;
            *header = new;
            self.sync().await?;
        }
        Ok(())
    }
}
