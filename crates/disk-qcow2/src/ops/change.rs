//! A change of a whole image: prepared on clusters that nobody uses, then settled.

use disk::DiskError;

use super::check::{CheckError, Limits, survey};
use super::file::{File, long};
use super::refcounts::{Refcounts, words};
use super::repair::{RepairError, recover};
use super::settle::{Refit, SettleError, Terms, Unknown, settle};
use super::tables::{self, Tables, TablesError};
use super::walk::{Walk, WalkError};
use crate::meta::bitmap::{self, Marking};
use crate::meta::entry::COPIED;
use crate::meta::head::{Head, HeadError};
use crate::meta::header::{autoclear, incompatible};

/// Why an image could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The header is not accepted.
    #[error("the image can not be opened for a change")]
    Head(#[from] HeadError),
    /// Snapshots or bitmaps are damaged.
    #[error("the image can not be changed")]
    Tables(#[from] TablesError),
    /// It could not be walked.
    #[error("the image could not be checked before the change")]
    Walk(#[from] WalkError),
    /// It is not sound.
    #[error("the image has {corruptions} corruptions: repair it first")]
    Damaged {
        /// What a check has found.
        corruptions: u64,
    },
    /// It was not closed cleanly, and could not be repaired.
    #[error("the image was not closed cleanly and could not be repaired")]
    Repair(#[from] Box<RepairError>),
    /// It could not be brought into its new state.
    #[error(
        "the change of the image could not be finished: it is as before or as after, and is repaired when it is opened"
    )]
    Settle(#[from] SettleError),
    /// The file fails.
    #[error("the image's file can not be changed")]
    Io(#[from] DiskError),
}

impl From<CheckError> for ChangeError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Head(error) => error.into(),
            CheckError::Tables(error) => error.into(),
            CheckError::Walk(error) => error.into(),
        }
    }
}

/// An image that is sound, and known cluster by cluster.
pub(crate) struct Change<'a> {
    file: &'a File<'a>,
    pub(crate) head: Head,
    pub(crate) tables: Tables,
    walk: Walk<'a>,
    refcounts: Refcounts<'a>,
    limits: Limits,
}

impl<'a> Change<'a> {
    /// Checks the image. One that was not closed cleanly is repaired first.
    pub(crate) async fn prepare(file: &'a File<'a>, limits: Limits) -> Result<Self, ChangeError> {
        let mut head = Head::read(file.0).await?;
        if head.header.incompatible & incompatible::DIRTY != 0 {
            recover(file.0, limits).await.map_err(Box::new)?;
            head = Head::read(file.0).await?;
        }
        let hanging = tables::read_tables(file, &head).await?;
        let (walk, refcounts) = survey(file, &head, &hanging, limits).await?;
        let corruptions = walk.report.corruptions + walk.report.check_errors;
        let marked = head.header.incompatible & (incompatible::DIRTY | incompatible::CORRUPT) != 0;
        if corruptions > 0 || marked {
            return Err(ChangeError::Damaged { corruptions });
        }
        // What is not known to this program does not survive a change by it.
        head.header.autoclear &= autoclear::KNOWN;
        Ok(Self {
            file,
            head,
            tables: hanging,
            walk,
            refcounts,
            limits,
        })
    }

    /// Writes bytes to clusters that nobody uses. Gives where, as an offset in bytes; nowhere, 0, for no bytes.
    pub(crate) async fn put(&mut self, bytes: &[u8]) -> Result<u64, ChangeError> {
        let layout = self.head.header.layout();
        let wanted = layout.clusters(long(bytes.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let mut start = self.walk.tally.free_run(0, wanted);
        let mut checked = start;
        while checked < start + wanted {
            // Nobody refers to it, but it is counted: a leak, or something not understood.
            let stored = self.refcounts.get(checked).await?;
            checked += 1;
            if stored != 0 {
                start = self.walk.tally.free_run(checked, wanted);
                checked = start;
            }
        }
        for cluster in start..start + wanted {
            self.walk.tally.add(cluster, 1).map_err(WalkError::from)?;
        }
        let offset = start << layout.cluster_bits;
        self.file.write(offset, bytes).await?;
        self.file.grow((start + wanted) << layout.cluster_bits).await?;
        Ok(offset)
    }

    /// Writes a copy of an L1 table, `entries` long, for others to refer to: no entry may be written in place.
    pub(crate) async fn put_l1(&mut self, offset: u64, from: u32, entries: u32) -> Result<u64, ChangeError> {
        let table = self.file.read(offset, u64::from(from.min(entries)) * 8).await?;
        let mut copy: Vec<u8> = words(&table).flat_map(|word| (word & !COPIED).to_be_bytes()).collect();
        copy.resize(entries as usize * 8, 0);
        self.put(&copy).await
    }

    /// Writes the snapshot table and has the header point at it.
    pub(crate) async fn put_snapshots(&mut self) -> Result<(), ChangeError> {
        let mut bytes = Vec::new();
        for (index, snapshot) in (0..).zip(&self.tables.snapshots) {
            let entry = snapshot.to_bytes();
            bytes.extend(entry.map_err(|source| TablesError::Snapshot { index, source })?);
        }
        self.head.header.snapshots_offset = self.put(&bytes).await?;
        self.head.header.snapshot_count = u32::try_from(self.tables.snapshots.len()).unwrap_or(u32::MAX);
        self.tables.snapshots_bytes = long(bytes.len());
        Ok(())
    }

    /// Makes it known that bitmaps say nothing any more, durably.
    pub(crate) async fn mark_bitmaps(&self, marking: Marking) -> Result<(), ChangeError> {
        let Some(pointer) = tables::bitmaps(&self.head)? else {
            return Ok(());
        };
        let mut directory = tables::bitmap_directory(self.file, self.head.header.layout(), pointer).await?;
        if bitmap::mark_in_use(&mut directory, pointer.count, marking).map_err(TablesError::from)? {
            self.file.write(pointer.directory_offset, &directory).await?;
            self.file.sync().await?;
        }
        Ok(())
    }

    /// Makes the head and tables, as they are now, the image's.
    pub(crate) async fn settle(mut self) -> Result<(), ChangeError> {
        self.file.sync().await?;
        let terms = Terms {
            refit: Refit::InPlace,
            unknown: Unknown::Refuse,
            limits: self.limits,
        };
        settle(self.file, &mut self.head, &self.tables, terms).await?;
        Ok(())
    }
}
