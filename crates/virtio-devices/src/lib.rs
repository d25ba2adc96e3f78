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
pub mod net;
pub mod rng;

pub use blk::{Blk, BlkCounters, BlkOptions};
pub use net::{Net, NetCounters, NetOptions, TapWire};
pub use rng::{Rng, RngCounters, RngOptions};
