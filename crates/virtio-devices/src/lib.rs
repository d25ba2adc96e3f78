//! The virtio devices of a machine. One folder each, the same names inside: `device` (what the transport sees), `config`
//! (configuration space and features), `request` (what drivers ask, parsed), `worker` (who answers).
//!
//! ```text
//!   transport ──▶ device ──▶ Crew ── one thread each ──▶ worker (Service) ──▶ Executor ──▶ disk, tap, …
//!                              ▲                            │
//!                 pause, resume, deactivate            owns its VirtQueues
//! ```

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod blk;
mod config_space;
mod crew;
mod figures;
pub mod net;
pub mod rng;
pub mod scsi;
mod spin;
#[cfg(test)]
mod test_disks;

pub use blk::{Blk, BlkOptions};
pub use figures::{DiskFigures, DiskSnapshot, OperationSnapshot};
pub use net::{Net, NetCounters, NetOptions, TapWire};
pub use rng::{Rng, RngCounters, RngOptions};
pub use scsi::{Lun, LunOptions, Medium, Scsi, ScsiCounters, ScsiError, ScsiOptions, ScsiSnapshot};
