//! What a step of a write may do with the guest range that it holds.

use super::map::What;
use super::tables::{Tables, Want};
use crate::meta::entry::{L2Entry, Place};
use crate::meta::layout::Layout;

/// What a step may do with a guest range that it holds.
pub(crate) enum Plan {
    /// Write there: somebody has mapped it meanwhile.
    InPlace { host: u64, len: u64 },
    /// The cluster has a place, and these of its units have not been written: up to guest offset `end`.
    Own { host: u64, end: u64, old: L2Entry },
    /// These consecutive clusters need a place.
    New(Vec<L2Entry>),
}

impl Tables {
    /// Where the start of a guest range may be written in place, and how much of it.
    pub(crate) fn place(&mut self, guest: u64, len: u64) -> Result<Option<(u64, u64)>, Want> {
        let run = self.run(guest, len)?;
        let What::Data { host, copied: true } = run.what else {
            return Ok(None);
        };
        self.guard(host, run.len)?;
        Ok(Some((host, run.len)))
    }

    /// What to do with the start of `start..end`, all of one L2 table.
    pub(crate) fn plan(&mut self, table: u64, start: u64, end: u64) -> Result<Plan, Want> {
        let layout = self.layout;
        let entry = self.l2_entry(table, start)?;
        let (piece_end, what) = self.piece(entry, start);
        let piece_end = piece_end.min(end);
        if let What::Data { host, copied: true } = what {
            let len = piece_end - start;
            self.guard(host, len)?;
            return Ok(Plan::InPlace { host, len });
        }
        if let Place::At { host, copied: true } = entry.place {
            self.guard(host, layout.cluster_bytes())?;
            return Ok(Plan::Own {
                host,
                end: piece_end,
                old: entry,
            });
        }
        self.guard_old(entry.place, Place::Nowhere)?;
        let mut old = vec![entry];
        let mut at = layout.cluster_floor(start) + layout.cluster_bytes();
        while at < end {
            let entry = self.l2_entry(table, at)?;
            let bad = self.guard_old(entry.place, Place::Nowhere).is_err();
            if bad || matches!(entry.place, Place::At { copied: true, .. }) {
                break;
            }
            old.push(entry);
            at += layout.cluster_bytes();
        }
        Ok(Plan::New(old))
    }
}

/// Whether a cluster's data has to move along when the cluster gets a new place.
pub(crate) const fn has_data(entry: &L2Entry) -> bool {
    match entry.place {
        Place::Nowhere => false,
        Place::At { .. } => entry.allocated != 0,
        Place::Compressed(_) => true,
    }
}

/// Bits of the units of the cluster at `cluster` that lie in `lower..upper`.
pub(crate) fn touched(layout: Layout, cluster: u64, lower: u64, upper: u64) -> u32 {
    let unit = layout.unit_bytes();
    let from = lower.saturating_sub(cluster) / unit;
    let to = upper.saturating_sub(cluster).min(layout.cluster_bytes()).div_ceil(unit);
    let below = |count: u64| if count >= 32 { u32::MAX } else { (1u32 << count) - 1 };
    below(to) & !below(from) & L2Entry::all(layout)
}
