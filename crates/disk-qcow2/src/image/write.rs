//! Writes: in place where the guest cluster has a place of its own, else into new clusters that are linked afterwards.
//!
//! Invariants: data is written before it is linked, and linked only after the write has completed, so that neither a reader
//! nor a commit sees a place whose data is not there; what surrounds the data in a new cluster is read while the guest range
//! is held, from a source nobody writes in place (the backing, a compressed or a shared cluster, zeroes).

use disk::{DiskFuture, total_len};
use guestmem::IoBuf;

use super::allocate::Claim;
use super::fault::{Damage, Fault};
use super::map::What;
use super::parts::{Parts, join};
use super::plan::{Plan, has_data, touched};
use super::state::Engine;
use crate::meta::entry::{L2Entry, Place};

/// Most that one step maps, bytes (a cluster if that is larger).
const STEP_BYTES: u64 = 4 << 20;

/// Parts of one request that are written in place at once.
const PARTS_AT_ONCE: usize = 32;

type LocalFuture<'a> = DiskFuture<'a, (Result<(), Fault>, Vec<IoBuf>)>;

/// Where a step writes: guest offsets `start..end`, and with what surrounds them `lower..upper`.
struct Target {
    /// Host offset of the first guest cluster.
    host: u64,
    start: u64,
    end: u64,
    lower: u64,
    upper: u64,
    fresh: bool,
}

impl Engine {
    /// Writes the buffers to a checked guest range.
    pub(crate) async fn write(&self, guest: u64, bufs: Vec<IoBuf>) -> (Result<(), Fault>, Vec<IoBuf>) {
        let len = total_len(&bufs);
        let mut parts = Parts::new(bufs);
        let result = self.write_parts(guest, len, &mut parts).await;
        (result, parts.finish())
    }

    /// Where the start of a guest range may be written in place, and how much of it.
    async fn place(&self, guest: u64, len: u64) -> Result<Option<(u64, u64)>, Fault> {
        self.step(|tables| tables.place(guest, len)).await
    }

    async fn write_parts(&self, guest: u64, len: u64, parts: &mut Parts) -> Result<(), Fault> {
        let end = guest + len;
        let mut at = guest;
        while at < end {
            let mut batch: Vec<LocalFuture<'_>> = Vec::new();
            let mut stopped = Ok(());
            while at < end && batch.len() < PARTS_AT_ONCE {
                match self.place(at, end - at).await {
                    Ok(Some((host, there))) => {
                        batch.push(Box::pin(self.write_data(host, there, parts.take(there))));
                        at += there;
                    }
                    Ok(None) => break,
                    Err(fault) => {
                        stopped = Err(fault);
                        break;
                    }
                }
            }
            let full = batch.len() == PARTS_AT_ONCE;
            for (written, part) in join(batch).await {
                parts.give_back(part);
                stopped = stopped.and(written);
            }
            stopped?;
            if at < end && !full {
                at += self.write_mapping(at, end - at, parts).await?;
            }
        }
        Ok(())
    }

    async fn write_part(&self, host: u64, len: u64, parts: &mut Parts) -> Result<u64, Fault> {
        let (result, part) = self.write_data(host, len, parts.take(len)).await;
        parts.give_back(part);
        result.map(|()| len)
    }

    /// Writes to the file. Its last cluster may have been cut short.
    async fn write_data(&self, host: u64, len: u64, bufs: Vec<IoBuf>) -> (Result<(), Fault>, Vec<IoBuf>) {
        let store = self.store();
        let there = store.geometry().size_bytes;
        if host + len > there {
            let layout = self.image.layout;
            let cut = layout.cluster_floor(host + len - 1);
            let covered = match cut >= there && self.data.is_none() {
                true => Err(Damage::Outside(cut).into()),
                false => Box::pin(self.cover(store, cut + layout.cluster_bytes())).await,
            };
            if let Err(fault) = covered {
                return (Err(fault), bufs);
            }
        }
        let (result, bufs) = store.write(host, bufs).await;
        (result.map_err(Fault::from), bufs)
    }

    /// Writes the start of a guest range that can not be written in place, and says how much that was.
    async fn write_mapping(&self, start: u64, len: u64, parts: &mut Parts) -> Result<u64, Fault> {
        self.relieve().await?;
        let layout = self.image.layout;
        let span = layout.l2_span_bytes();
        let step_end = layout.cluster_floor(start) + STEP_BYTES.max(layout.cluster_bytes());
        let end = (start + len).min(start - (start & (span - 1)) + span).min(step_end);
        let bits = layout.cluster_bits;
        let range = self.hold(start >> bits..((end - 1) >> bits) + 1).await;
        let table = self.writable_table(start).await?;
        let plan = self.step(|tables| tables.plan(table, start, end)).await?;
        let written = match plan {
            Plan::InPlace { host, len } => self.write_part(host, len, parts).await?,
            Plan::Own { host, end, old } => {
                if self.data.is_none() && host >= self.file.geometry().size_bytes {
                    return Err(Damage::Outside(host).into());
                }
                let unit = layout.unit_bytes();
                let target = Target {
                    host,
                    start,
                    end,
                    lower: start - start % unit,
                    upper: self.reach(end.next_multiple_of(unit), end),
                    fresh: false,
                };
                self.write_around(&target, parts).await?;
                self.link(table, &target, &[old]).await?;
                end - start
            }
            Plan::New(old) => self.write_new(table, (start, end), &old, parts).await?,
        };
        drop(range);
        Ok(written)
    }

    async fn write_new(
        &self,
        table: u64,
        (start, end): (u64, u64),
        old: &[L2Entry],
        parts: &mut Parts,
    ) -> Result<u64, Fault> {
        let layout = self.image.layout;
        let bits = layout.cluster_bits;
        let first = layout.cluster_floor(start);
        // In an external data file every guest cluster has its own place.
        let claim = match self.data {
            Some(_) => Claim {
                first: first >> bits,
                count: old.len() as u64,
                fresh: self.image.data_is_raw,
            },
            None => self.allocate(old.len() as u64).await?,
        };
        let count = usize::try_from(claim.count).unwrap_or(usize::MAX);
        let old = old.get(..count).unwrap_or(old);
        let end = end.min(first + (claim.count << bits));
        let unit = layout.unit_bytes();
        let moves = |entry: Option<&L2Entry>| entry.is_some_and(has_data);
        let upper = end.next_multiple_of(if moves(old.last()) {
            layout.cluster_bytes()
        } else {
            unit
        });
        let target = Target {
            host: claim.first << bits,
            start,
            end,
            lower: if moves(old.first()) {
                first
            } else {
                start - start % unit
            },
            upper: self.reach(upper, end),
            fresh: claim.fresh,
        };
        if let Err(fault) = self.write_around(&target, parts).await {
            if self.data.is_none() {
                self.unclaim(claim).await?;
            }
            return Err(fault);
        }
        self.link(table, &target, old).await?;
        Ok(end - start)
    }

    /// How far a step may write what surrounds its data: a data file need not be longer than the disk.
    fn reach(&self, upper: u64, end: u64) -> u64 {
        match self.data {
            Some(_) => upper.min(self.image.size_bytes().max(end)),
            None => upper,
        }
    }

    /// Writes the next part, with what surrounds it in its units.
    async fn write_around(&self, target: &Target, parts: &mut Parts) -> Result<(), Fault> {
        let layout = self.image.layout;
        let head = self.surroundings(target.lower, target.start, target.fresh).await?;
        let tail = self.surroundings(target.end, target.upper, target.fresh).await?;
        let store = self.store();
        let first = layout.cluster_floor(target.start);
        let upper = match self.data {
            Some(_) => target.upper,
            None => target.upper.next_multiple_of(layout.cluster_bytes()),
        };
        let host_end = target.host + (upper - first);
        self.cover(store, host_end).await?;
        let from = if head.is_some() { target.lower } else { target.start };
        let (has_head, has_tail) = (head.is_some(), tail.is_some());
        let mut bufs = Vec::from_iter(head);
        bufs.extend(parts.take(target.end - target.start));
        bufs.extend(tail);
        let (result, mut bufs) = store.write(target.host + (from - first), bufs).await;
        if has_tail {
            bufs.pop();
        }
        if has_head && !bufs.is_empty() {
            bufs.remove(0);
        }
        parts.give_back(bufs);
        Ok(result?)
    }

    /// What is in a guest range that is about to get a new place. `None` if that reads so already.
    async fn surroundings(&self, from: u64, to: u64, fresh: bool) -> Result<Option<IoBuf>, Fault> {
        if from >= to {
            return Ok(None);
        }
        let len = to - from;
        let run = self.map(from, len).await?;
        let zero = match run.what {
            What::Zero => run.len == len,
            What::Unmapped => run.len == len && self.image.unmapped_is_zero(from, len),
            What::Data { .. } | What::Compressed(_) => false,
        };
        match zero {
            true if fresh => Ok(None),
            true => Ok(Some(IoBuf::heap(usize::try_from(len).unwrap_or(0), 4096)?)),
            false => Ok(Some(self.read_copy(from, len).await?)),
        }
    }

    /// Links the clusters of a target whose data is in place.
    async fn link(&self, table: u64, target: &Target, old: &[L2Entry]) -> Result<(), Fault> {
        let layout = self.image.layout;
        let mut cluster = layout.cluster_floor(target.start);
        let mut host = target.host;
        let mut rest = old;
        self.step(|tables| {
            while let Some((old, more)) = rest.split_first() {
                let now = touched(layout, cluster, target.lower, target.upper);
                let stays = match old.place {
                    Place::At { host: same, .. } if same == host => old.allocated,
                    _ => 0,
                };
                let entry = L2Entry {
                    place: Place::At { host, copied: true },
                    allocated: stays | now,
                    zero: old.zero & !now,
                };
                tables.link(table, cluster, entry)?;
                (cluster, host) = (cluster + layout.cluster_bytes(), host + layout.cluster_bytes());
                rest = more;
            }
            Ok(())
        })
        .await
    }
}
