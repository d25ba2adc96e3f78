//! The engine: one image, used by any number of queues at once.
//!
//! ```text
//!   queue ─▶ read  ─▶ map ─▶ runs ─▶ file · backing · zeroes · inflate
//!         ─▶ write ─▶ map ─▶ in place                                     (no metadata)
//!                        └─▶ hold range ─▶ allocate ─▶ data ─▶ link       (metadata in memory)
//!         ─▶ zero  ─▶ hold range ─▶ link                                  (metadata in memory)
//!         ─▶ flush ─▶ commit: refcounts ─ sync ─ refcount table ─ sync ─ L2, L1 ─ sync ─▶ release what lost its reference
//! ```
//!
//! Invariants, each explained where it is kept: what is durable refers only to what is durable ([`commit`]); a cluster gets
//! a new use only when nothing durable and no operation refers to it ([`epoch`], [`release`]); an L2 entry changes only
//! under its guest range ([`busy`]); what is in the cache is the truth ([`cache`]).

mod allocate;
mod busy;
mod cache;
mod commit;
mod compressor;
mod deflate;
mod epoch;
mod extents;
mod fault;
mod grow;
mod inflate;
mod layer;
mod load;
mod map;
mod open;
mod options;
mod parts;
mod plan;
mod prepare;
mod queue;
mod read;
mod release;
mod state;
mod straight;
mod stretch;
mod structure;
mod tables;
mod write;
mod zero;

pub use compressor::Compressor;
pub use fault::{Damage, Poisoned};
pub use layer::{LayerExtent, LayerKind, LayerMap};
pub use open::Qcow2Disk;
pub use options::{CACHE_BYTES, OpenError, Qcow2Options};
