//! Zeroes and discards: whole units by metadata, edges by writing zeroes.
//!
//! An operation in flight may still write into a cluster that becomes zeroes here: its place is not used again before that
//! operation is over ([`super::epoch`]), and a place that is kept shows nothing of it until it is written again.

use disk::ZeroMode;
use guestmem::IoBuf;

use super::fault::Fault;
use super::map::What;
use super::state::Engine;
use super::tables::{Tables, Want};
use crate::meta::entry::{L2Entry, Place};
use crate::meta::layout::Layout;

/// Zeroes are written in pieces of this, bytes, where they have to be written.
const PIECE_BYTES: u64 = 1 << 20;

/// How far one look under the lock goes, in clusters.
const CLUSTERS_AT_ONCE: u64 = 512;

/// What to do with the clusters of a range.
#[derive(Clone, Copy)]
struct Wish {
    mode: ZeroMode,
    /// Unmapped clusters show nothing: there is no backing, or it is shorter.
    unmapped_is_zero: bool,
    /// There is something below that unmapped clusters would show.
    has_backing: bool,
}

/// How far a look came.
enum Zeroed {
    /// Up to this guest offset all is done.
    Until(u64),
    /// Up to the first all is done; from there to the second zeroes have to be written as data.
    Write(u64, u64),
}

/// Bits of the units of the cluster at `cluster` that lie in `from..to`.
fn units(layout: Layout, cluster: u64, from: u64, to: u64) -> u32 {
    let unit = layout.unit_bytes();
    let bit = |at: u64| at.saturating_sub(cluster).min(layout.cluster_bytes()) / unit;
    let below = |count: u64| if count >= 32 { u32::MAX } else { (1u32 << count) - 1 };
    below(bit(to)) & !below(bit(from)) & L2Entry::all(layout)
}

impl Tables {
    /// Makes zeroes of the whole units in `from..to`, all of one L2 table.
    fn zero_units(&mut self, table: u64, from: u64, to: u64, wish: Wish) -> Result<Zeroed, Want> {
        let layout = self.layout;
        let mut at = from;
        let mut looks = CLUSTERS_AT_ONCE;
        while at < to && looks > 0 {
            looks -= 1;
            let cluster = layout.cluster_floor(at);
            let next = (cluster + layout.cluster_bytes()).min(to);
            let old = match self.l2_entry(table, at) {
                Err(Want::Slice(..)) if at > from => break,
                other => other?,
            };
            let mask = units(layout, cluster, at, next);
            let Some(new) = zeroed(layout, old, mask, wish) else {
                // In a data file only what is there reads as what is written there: the other units are marked.
                let zero = old.zero | (mask & !old.allocated);
                if layout.external_data && !wish.unmapped_is_zero && zero != old.zero {
                    self.link(table, at, L2Entry { zero, ..old })?;
                }
                return Ok(Zeroed::Write(at, next));
            };
            if new != old {
                self.link(table, at, new)?;
            }
            at = next;
        }
        Ok(Zeroed::Until(at))
    }
}

/// What an entry becomes when these units become zeroes. `None` if that takes data.
fn zeroed(layout: Layout, old: L2Entry, mask: u32, wish: Wish) -> Option<L2Entry> {
    let all = mask == L2Entry::all(layout);
    let frees = wish.mode == ZeroMode::MayUnmap;
    let unmapped = (L2Entry::all(layout) & !old.allocated & !old.zero) & mask;
    let shows_nothing = old.allocated & mask == 0 && (unmapped == 0 || wish.unmapped_is_zero);
    let holds_place = matches!(old.place, Place::At { .. }) && old.allocated == 0;
    if shows_nothing && !(frees && all && holds_place) {
        return Some(old);
    }
    if layout.external_data && old.allocated & mask != 0 {
        return None;
    }
    if layout.version < 3 {
        // No way to say zero: only nothing at all is.
        return (wish.unmapped_is_zero && frees).then_some(L2Entry::NOTHING);
    }
    if matches!(old.place, Place::Compressed(_)) && !all {
        return None;
    }
    let allocated = match old.place {
        Place::Compressed(_) => 0,
        _ => old.allocated & !mask,
    };
    let zero = old.zero | mask;
    let keeps = match old.place {
        Place::At { copied, .. } => allocated != 0 || (copied && !frees),
        _ => false,
    };
    if keeps {
        return Some(L2Entry {
            place: old.place,
            allocated,
            zero,
        });
    }
    Some(match all && !wish.has_backing {
        true => L2Entry::NOTHING,
        false => L2Entry {
            place: Place::Nowhere,
            allocated: 0,
            zero,
        },
    })
}

impl Engine {
    /// Makes a checked guest range zeroes.
    pub(crate) async fn zero(&self, start: u64, len: u64, mode: ZeroMode) -> Result<(), Fault> {
        let unit = self.image.layout.unit_bytes();
        let end = start + len;
        let first = start.next_multiple_of(unit).min(end);
        self.zero_edge(start, first).await?;
        let last = self.zero_middle(first, end, mode).await?;
        self.zero_edge(last, end).await
    }

    /// Gives back the whole units of a checked guest range.
    pub(crate) async fn discard(&self, start: u64, len: u64) -> Result<(), Fault> {
        let layout = self.image.layout;
        if layout.version < 3 && self.image.has_backing {
            // What is below would show again.
            return Ok(());
        }
        let first = start.next_multiple_of(layout.unit_bytes());
        self.zero_middle(first, start + len, ZeroMode::MayUnmap).await.map(drop)
    }

    /// Part of a unit: zeroes are written, unless that is what it reads as.
    pub(crate) async fn zero_edge(&self, from: u64, to: u64) -> Result<(), Fault> {
        let mut at = from;
        while at < to {
            let run = self.map(at, to - at).await?;
            let zero = match run.what {
                What::Zero => true,
                What::Unmapped => self.image.unmapped_is_zero(at, run.len),
                What::Data { .. } | What::Compressed(_) => false,
            };
            if !zero {
                self.write_zero_data(at, at + run.len).await?;
            }
            at += run.len;
        }
        Ok(())
    }

    /// Writes zeroes as data.
    async fn write_zero_data(&self, from: u64, to: u64) -> Result<(), Fault> {
        let mut at = from;
        let mut zeroes = Vec::new();
        while at < to {
            let len = (to - at).min(PIECE_BYTES);
            let len_here = usize::try_from(len).unwrap_or(0);
            if disk::total_len(&zeroes) != len {
                zeroes = vec![IoBuf::heap(len_here, 4096)?];
            }
            let result;
            (result, zeroes) = Box::pin(self.write(at, zeroes)).await;
            result?;
            at += len;
        }
        Ok(())
    }

    /// Whole units from a unit boundary on, and the last one also where the disk ends within it: nobody sees what is behind.
    /// How far that came: to `to`, or to the last unit boundary before it.
    pub(crate) async fn zero_middle(&self, from: u64, to: u64, mode: ZeroMode) -> Result<u64, Fault> {
        let layout = self.image.layout;
        let span = layout.l2_span_bytes();
        let mut at = from;
        while at < to {
            let end = to.min(at - (at & (span - 1)) + span);
            self.relieve().await?;
            let entry = self.step(|tables| tables.l1_entry(at)).await?;
            if entry.offset == 0 && self.image.unmapped_is_zero(at, end - at) {
                at = end;
                continue;
            }
            at = match self.zero_in_table(at, end, mode).await? {
                Zeroed::Until(done) if done == at => break,
                Zeroed::Until(done) => done,
                Zeroed::Write(data, data_end) => {
                    let data_end = data_end.min(to);
                    self.zero_data(data, data_end, mode).await?;
                    data_end
                }
            };
        }
        Ok(at)
    }

    async fn zero_in_table(&self, from: u64, to: u64, mode: ZeroMode) -> Result<Zeroed, Fault> {
        let layout = self.image.layout;
        let bits = layout.cluster_bits;
        // Whether clusters show the backing is the same for all of one look.
        let backing_end = self.image.backing_bytes.next_multiple_of(layout.cluster_bytes());
        let to = if from < backing_end { to.min(backing_end) } else { to };
        let to = to.min(layout.cluster_floor(from) + CLUSTERS_AT_ONCE * layout.cluster_bytes());
        let wish = Wish {
            mode,
            unmapped_is_zero: self.image.unmapped_is_zero(from, to - from),
            has_backing: self.image.has_backing,
        };
        let range = self.hold(from >> bits..((to - 1) >> bits) + 1).await;
        if layout.version < 3 && !wish.unmapped_is_zero {
            // Data will be written, which makes the table: nothing to change here.
            return Ok(Zeroed::Write(from, to));
        }
        let table = self.writable_table(from).await?;
        let unit = layout.unit_bytes();
        let zeroed = self
            .step(|tables| {
                // Asked here, where nothing can have been written behind the end yet if this is the end.
                let end = match self.image.size_bytes() <= to {
                    true => to.next_multiple_of(unit),
                    false => to - to % unit,
                };
                tables.zero_units(table, from, end, wish)
            })
            .await;
        drop(range);
        zeroed
    }

    /// Zeroes as data: into the data file by its own means, else as any write.
    async fn zero_data(&self, from: u64, to: u64, mode: ZeroMode) -> Result<(), Fault> {
        if let Some(data) = &self.data {
            let there = data.geometry().size_bytes;
            let end = to.min(there);
            if from < end {
                data.write_zeroes(from, end - from, mode).await?;
            }
            return Ok(());
        }
        self.write_zero_data(from, to).await
    }
}
