//! Bit 63 of L1 and L2 entries ("one reference, write in place"), made true for the active tables.

use disk::DiskError;

use super::file::{File, long, short};
use super::refcounts::words;
use super::tally::{Kind, Tally};
use crate::meta::entry::{COPIED, L1Entry, L2Entry, Place};
use crate::meta::head::Head;
use crate::meta::layout::Layout;

/// Tables are read and written in pieces of this, bytes.
const PIECE_BYTES: u64 = 64 << 10;
/// What is written of a piece begins and ends at multiples of this, bytes.
const WRITE_BYTES: usize = 4096;

/// Which way flags are changed. To clear one is always safe; to set one needs its refcount to be 1, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Clears it where there is not exactly one reference.
    Clear,
    /// Sets it where there is.
    Set,
}

/// Goes over the active L1 table and its L2 tables. Gives the number of changed entries; not durable before a sync.
pub(crate) async fn correct(file: &File<'_>, head: &Head, tally: &Tally, pass: Pass) -> Result<u64, DiskError> {
    let layout = head.header.layout();
    let start = head.header.l1_offset;
    let end = start + u64::from(head.header.l1_entries) * 8;
    let mut changed = 0;
    let mut at = file.data_from(start, end).await?;
    while at < end {
        let mut table = file.read(at, PIECE_BYTES.min(end - at)).await?;
        let here: Vec<u64> = words(&table).collect();
        let mut edits = Vec::new();
        for (index, &word) in here.iter().enumerate() {
            let Ok(entry) = L1Entry::decode(word, layout) else {
                continue;
            };
            if entry.offset == 0 || entry.offset >= file.len() {
                continue;
            }
            let cluster = entry.offset >> layout.cluster_bits;
            if tally.kind(cluster) != Kind::L2 {
                // Something else is there, too.
                continue;
            }
            let count = tally.count(cluster);
            edits.extend(edit(word, count, pass).map(|word| (index * 8, word)));
            changed += correct_l2(file, layout, entry.offset, (tally, pass)).await?;
        }
        changed += apply(file, at, &mut table, &edits).await?;
        at = file.data_from(at + long(table.len()), end).await?;
    }
    Ok(changed)
}

/// The word with its flag made true, if it is not and may be changed in this pass.
fn edit(word: u64, count: u16, pass: Pass) -> Option<u64> {
    match (pass, word & COPIED != 0) {
        (Pass::Clear, true) if count != 1 => Some(word & !COPIED),
        (Pass::Set, false) if count == 1 => Some(word | COPIED),
        _ => None,
    }
}

async fn correct_l2(
    file: &File<'_>,
    layout: Layout,
    offset: u64,
    (tally, pass): (&Tally, Pass),
) -> Result<u64, DiskError> {
    let end = offset + layout.cluster_bytes();
    if layout.external_data || file.data_from(offset, end).await? == end {
        return Ok(0);
    }
    let mut table = file.read(offset, layout.cluster_bytes()).await?;
    let size = short(layout.l2_entry_bytes());
    let mut edits = Vec::new();
    for (index, entry) in table.chunks_exact(size).enumerate() {
        let mut fields = words(entry);
        let word = fields.next().unwrap_or(0);
        let bitmap = fields.next().unwrap_or(0);
        if let Ok(entry) = L2Entry::decode(word, bitmap, layout)
            && let Place::At { host, .. } = entry.place
            && host < file.len()
        {
            let count = tally.count(host >> layout.cluster_bits);
            edits.extend(edit(word, count, pass).map(|word| (index * size, word)));
        }
    }
    apply(file, offset, &mut table, &edits).await
}

/// Writes the changed words of a table, and around them no more than it must.
async fn apply(file: &File<'_>, offset: u64, table: &mut [u8], edits: &[(usize, u64)]) -> Result<u64, DiskError> {
    let mut pieces: Vec<usize> = Vec::new();
    for &(at, word) in edits {
        if let Some(place) = table.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<8>()) {
            *place = word.to_be_bytes();
        }
        if pieces.last() != Some(&(at / WRITE_BYTES)) {
            pieces.push(at / WRITE_BYTES);
        }
    }
    for piece in pieces {
        let from = piece * WRITE_BYTES;
        let to = (from + WRITE_BYTES).min(table.len());
        let bytes = table.get(from..to).unwrap_or_default();
        file.write(offset + long(from), bytes).await?;
    }
    Ok(long(edits.len()))
}
