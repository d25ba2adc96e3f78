//! Going from one header to the next so that a crash at any point leaves an image that is as before or as after.
//!
//! Whoever changes an image first writes the new structures to clusters that nobody uses, then hands over the new header:
//!
//! ```text
//!   walk the image as it will be             every host cluster's references
//!   mark dirty (version 3)               ┐   refcounts are believed to be wrong until the end: a crash means a rebuild
//!   clear bit 63 where references ≠ 1    │   safe for the old header and for the new one
//!   raise refcounts, or write new ones   ┘
//!   ── sync ── header ── sync ──             one sector: the switch
//!   lower refcounts                          ── sync ──
//!   set bit 63 where references = 1          ── sync ──
//!   no longer dirty
//! ```
//!
//! Where a table can not be read, what it refers to is not counted: then no refcount is lowered and no bit 63 set, since both
//! would let somebody write over what is only referred to from there.
//!
//! In version 2 there is no dirty bit; the same order makes a crash cost leaked clusters and needless copies, nothing more.

use disk::DiskError;

use super::check::Limits;
use super::file::{File, long, short};
use super::flags::{self, Pass};
use super::refcounts::Refcounts;
use super::refcounts::words;
use super::tables::Tables;
use super::tally::TallyFull;
use super::walk::{Count, Walk, WalkError};
use crate::meta::head::Head;
use crate::meta::header::incompatible;
use crate::meta::layout::{Layout, REFTABLE_BYTES_MAX};
use crate::meta::refcount;

/// Where the incompatible features are in the header, bytes.
const INCOMPATIBLE_AT: u64 = 72;

/// Why an image can not be brought into its new state.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The file fails.
    #[error("the image's file can not be changed")]
    Io(#[from] DiskError),
    /// It can not be walked.
    #[error("the references of the image can not be counted")]
    Walk(#[from] WalkError),
    /// Narrow refcounts.
    #[error(
        "cluster {cluster} would have {count} references, more than the image's {bits}-bit refcounts can hold: convert it \
         with wider ones"
    )]
    RefcountTooLarge {
        /// Host cluster number.
        cluster: u64,
        /// References it would have.
        count: u64,
        /// Width of the image's refcounts, bits.
        bits: u32,
    },
    /// Parts of the tables are not readable.
    #[error(
        "parts of the image's tables can not be read, so what they refer to would be given away: nothing was changed; see \
         what a check tells, then copy the image, which only reads it, or restore it"
    )]
    Incomplete,
    /// The file is too long for any refcount table.
    #[error("the image's file of {file_bytes} bytes is too long for its refcounts: convert it with larger clusters")]
    TableTooLarge {
        /// Length of the file, bytes.
        file_bytes: u64,
    },
}

impl From<TallyFull> for SettleError {
    fn from(full: TallyFull) -> Self {
        Self::Walk(full.into())
    }
}

/// How the refcounts get from what is stored to what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refit {
    /// Where they are, if every used cluster has a block; by new structures otherwise.
    InPlace,
    /// By new structures: those there are not to be believed.
    Rebuild,
}

/// What to do when some references are not known, because what holds them can not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Refuse, and change nothing.
    Refuse,
    /// Raise refcounts, lower none. Refused, too, where the refcounts have to be built anew.
    RaiseOnly,
}

/// How to settle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) refit: Refit,
    pub(crate) unknown: Unknown,
    pub(crate) limits: Limits,
}

/// Makes `head` with its `tables` the image's state. What it newly refers to has been written. The dirty and corrupt bits of
/// `head` are what they are to be at the end.
pub(crate) async fn settle<'a>(
    file: &'a File<'a>,
    head: &mut Head,
    tables: &Tables,
    terms: Terms,
) -> Result<(), SettleError> {
    let mut rebuild = terms.refit == Refit::Rebuild;
    let (mut walk, mut refcounts) = loop {
        // Refcount structures that get replaced stay where they are until the switch, and are free afterwards.
        let count = match rebuild {
            true => Count::WithoutRefcounts,
            false => Count::WithRefcounts,
        };
        let mut walk = Walk::new(file, head, terms.limits.memory_bytes).await?;
        let refcounts = walk.run(head, tables, count).await?;
        let missing = check_fit(&mut walk, &refcounts, head.header.layout())?;
        if rebuild || !missing {
            break (walk, refcounts);
        }
        rebuild = true;
    };
    if walk.incomplete && (rebuild || terms.unknown == Unknown::Refuse) {
        return Err(SettleError::Incomplete);
    }
    let incompatible = head.header.incompatible;
    if head.header.version >= 3 {
        mark_dirty(file).await?;
        head.header.incompatible |= incompatible::DIRTY;
    }
    flags::correct(file, head, &walk.tally, Pass::Clear).await?;
    match rebuild {
        false => {
            adjust(&mut walk, &mut refcounts, Direction::Up).await?;
            file.sync().await?;
            write_header(file, head).await?;
            if !walk.incomplete {
                adjust(&mut walk, &mut refcounts, Direction::Down).await?;
            }
        }
        true => {
            let (offset, clusters) = rebuild_refcounts(&mut walk, &mut refcounts, head.header.layout()).await?;
            file.sync().await?;
            head.header.reftable_offset = offset;
            head.header.reftable_clusters = clusters;
            write_header(file, head).await?;
        }
    }
    file.sync().await?;
    if !walk.incomplete {
        flags::correct(file, head, &walk.tally, Pass::Set).await?;
        file.sync().await?;
    }
    if head.header.incompatible != incompatible {
        head.header.incompatible = incompatible;
        write_header(file, head).await?;
    }
    Ok(())
}

/// Writes the fixed header fields, which lie in one sector, and makes them durable.
pub(crate) async fn write_header(file: &File<'_>, head: &Head) -> Result<(), DiskError> {
    file.write(0, &head.header.encode()).await?;
    file.sync().await
}

/// Sets the dirty bit of the header in the file, whatever else it says.
async fn mark_dirty(file: &File<'_>) -> Result<(), DiskError> {
    let field = file.read(INCOMPATIBLE_AT, 8).await?;
    let stored = words(&field).next().unwrap_or(0);
    if stored & incompatible::DIRTY == 0 {
        let marked = stored | incompatible::DIRTY;
        file.write(INCOMPATIBLE_AT, &marked.to_be_bytes()).await?;
        file.sync().await?;
    }
    Ok(())
}

/// Whether some used cluster has no refcount block, so that the structures must be built anew.
fn check_fit(walk: &mut Walk<'_>, refcounts: &Refcounts<'_>, layout: Layout) -> Result<bool, SettleError> {
    let mut missing = false;
    let mut next = 0;
    while let Some(cluster) = walk.tally.next_used(next) {
        let count = u64::from(walk.tally.count(cluster));
        if count > layout.refcount_max() {
            let bits = layout.refcount_bits();
            return Err(SettleError::RefcountTooLarge { cluster, count, bits });
        }
        missing |= !refcounts.covers(cluster);
        next = cluster + 1;
    }
    Ok(missing)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Changes stored refcounts to the counted ones, where that is a change in this direction. Not synced.
async fn adjust<'a>(
    walk: &mut Walk<'a>,
    refcounts: &mut Refcounts<'a>,
    direction: Direction,
) -> Result<(), SettleError> {
    let mut from = 0;
    while let Some((found, next)) = walk.mismatches(refcounts, from).await? {
        for m in found {
            let concerned = match direction {
                Direction::Up => m.stored < m.counted,
                Direction::Down => m.stored > m.counted,
            };
            if concerned {
                refcounts.set(m.cluster, m.counted).await?;
            }
        }
        from = next;
    }
    refcounts.flush().await?;
    Ok(())
}

/// Writes a refcount table and blocks that hold what is counted, themselves included, to clusters nobody uses. Gives where the
/// table is and how many clusters it has. Not synced.
async fn rebuild_refcounts<'a>(
    walk: &mut Walk<'a>,
    old: &mut Refcounts<'a>,
    layout: Layout,
) -> Result<(u64, u32), SettleError> {
    let (file, per_block) = (walk.file, layout.refblock_entries());
    // Everything new goes behind all there is: nothing that the old header needs is overwritten, believed or not.
    let start = layout.clusters(file.len()).max(walk.tally.end());
    let needed = |walk: &mut Walk<'a>| {
        let mut blocks = Vec::new();
        let mut next = 0;
        while let Some(cluster) = walk.tally.next_used(next) {
            blocks.push(cluster / per_block);
            next = (cluster / per_block + 1) * per_block;
        }
        blocks
    };
    let mut used = 0;
    // What is added needs counting too: a few rounds, each adding less than the one before.
    let (blocks, table_clusters) = loop {
        let blocks = needed(walk);
        let entries = blocks.last().map_or(0, |last| last + 1);
        let table_bytes = entries * 8;
        if table_bytes > REFTABLE_BYTES_MAX.max(layout.cluster_bytes()) {
            let file_bytes = file.len();
            return Err(SettleError::TableTooLarge { file_bytes });
        }
        let table_clusters = layout.clusters(table_bytes);
        let total = long(blocks.len()) + table_clusters;
        if total <= used {
            break (blocks, table_clusters);
        }
        for cluster in start + used..start + total {
            walk.tally.add(cluster, 1)?;
        }
        used = total;
    };
    let mut table = vec![0; short(table_clusters << layout.cluster_bits)];
    let first_block = start + table_clusters;
    for (place, &number) in blocks.iter().enumerate() {
        let offset = (first_block + long(place)) << layout.cluster_bits;
        write_block(walk, layout, number, offset).await?;
        let entry = table
            .get_mut(short(number) * 8..)
            .and_then(|rest| rest.first_chunk_mut::<8>());
        if let Some(entry) = entry {
            *entry = offset.to_be_bytes();
        }
    }
    file.write(start << layout.cluster_bits, &table).await?;
    file.grow((start + used) << layout.cluster_bits).await?;
    old.forget_all();
    let clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
    Ok((start << layout.cluster_bits, clusters))
}

async fn write_block(walk: &Walk<'_>, layout: Layout, number: u64, offset: u64) -> Result<(), SettleError> {
    let mut block = vec![0; short(layout.cluster_bytes())];
    let first = number * layout.refblock_entries();
    for index in 0..short(layout.refblock_entries()) {
        let count = walk.tally.count(first + long(index));
        if count != 0 {
            refcount::set(&mut block, layout.refcount_order, index, count.into());
        }
    }
    walk.file.write(offset, &block).await?;
    Ok(())
}
