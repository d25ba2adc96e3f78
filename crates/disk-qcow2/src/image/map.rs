//! From guest offsets to what is there: runs of one kind.

use super::fault::{Damage, Fault};
use super::state::{Engine, Image};
use super::tables::{Tables, Want};
use crate::meta::entry::{Compressed, L2Entry, Place};

/// What a run of guest bytes consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Bytes of the file (or data file), at consecutive host offsets.
    Data {
        /// Host offset of the first byte.
        host: u64,
        /// They may be written in place.
        copied: bool,
    },
    /// Zeroes, whatever is below.
    Zero,
    /// Nothing here: the backing shows, or zeroes.
    Unmapped,
    /// Bytes of one compressed cluster.
    Compressed(Compressed),
}

/// Consecutive guest bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// How many, at least one.
    pub(crate) len: u64,
    /// What they are.
    pub(crate) what: What,
}

impl Tables {
    /// The run at a guest offset: as long as it is known to be of one kind, at most `len` bytes.
    pub(crate) fn run(&mut self, guest: u64, len: u64) -> Result<Run, Want> {
        let layout = self.layout;
        let l1 = self.l1_entry(guest)?;
        let span = layout.l2_span_bytes();
        // One L2 table at a time.
        let end = guest + len.min(span - (guest & (span - 1)));
        if l1.offset == 0 {
            let what = What::Unmapped;
            return Ok(Run { len: end - guest, what });
        }
        let entry = self.l2_entry(l1.offset, guest)?;
        let (mut at, what) = self.piece(entry, guest);
        while at < end && !matches!(what, What::Compressed(_)) {
            // What comes next is the next run's business if it is not known, or damaged.
            let Ok(entry) = self.l2_entry(l1.offset, at) else { break };
            let (next, more) = self.piece(entry, at);
            let continues = match (what, more) {
                (
                    What::Data { host, copied },
                    What::Data {
                        host: next,
                        copied: same,
                    },
                ) => next == host + (at - guest) && copied == same,
                (what, more) => what == more,
            };
            if !continues {
                break;
            }
            at = next;
        }
        Ok(Run {
            len: at.min(end) - guest,
            what,
        })
    }

    /// The piece of an entry's cluster from a guest offset on: where it ends, and what it is.
    pub(crate) fn piece(&self, entry: L2Entry, guest: u64) -> (u64, What) {
        let layout = self.layout;
        let start = layout.cluster_floor(guest);
        let cluster_end = start + layout.cluster_bytes();
        let unit = u32::try_from((guest - start) / layout.unit_bytes()).unwrap_or(0);
        let bits = |mask: u32| (mask >> unit).trailing_ones();
        let (count, what) = if entry.allocated >> unit & 1 == 1 {
            match entry.place {
                Place::At { host, copied } => {
                    let host = host + (guest - start);
                    (bits(entry.allocated), What::Data { host, copied })
                }
                Place::Compressed(data) => return (cluster_end, What::Compressed(data)),
                Place::Nowhere => (bits(entry.allocated), What::Unmapped),
            }
        } else if entry.zero >> unit & 1 == 1 {
            (bits(entry.zero), What::Zero)
        } else {
            (bits(!(entry.allocated | entry.zero)), What::Unmapped)
        };
        let end = start + u64::from(unit + count) * layout.unit_bytes();
        (end.min(cluster_end), what)
    }

    /// Refuses to write guest data over tables.
    pub(crate) fn guard(&self, host: u64, len: u64) -> Result<(), Damage> {
        if self.layout.external_data {
            return Ok(());
        }
        let bits = self.layout.cluster_bits;
        let (first, last) = (host >> bits, (host + len.max(1) - 1) >> bits);
        match self.overlaps(first, last - first + 1) {
            true => Err(Damage::Overlap(host)),
            false => Ok(()),
        }
    }
}

impl Image {
    /// Whether unmapped guest bytes read as zeroes.
    pub(crate) fn unmapped_is_zero(&self, guest: u64, len: u64) -> bool {
        self.in_backing(guest, len) == 0
    }
}

impl Engine {
    /// The run at a guest offset; see [`Tables::run`].
    pub(crate) async fn map(&self, guest: u64, len: u64) -> Result<Run, Fault> {
        self.step(|tables| tables.run(guest, len)).await
    }
}
