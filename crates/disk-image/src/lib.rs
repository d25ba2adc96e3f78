//! Whole disk images: what karatd's volumes and a machine's disks are made, looked at and changed with.
//!
//! ```text
//!   path ── resolve (policy) ──▶ Chain: open files, top first, each with its format
//!                                  │
//!              open ◀──────────────┴──────────▶ info · compare · convert · commit · rebase · measure
//!                │                               (blocking; `Watch` tells progress and stops)
//!         Arc<dyn Disk> ── Switch ── under a running guest: snapshot · stream · mirror
//! ```
//!
//! Nothing here follows a path that an image names unless a [`Policy`] allows it, and no operation but [`resolve`] opens a path
//! at all. Functions that are not `async` block, run on executors of their own, and want a thread without one.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod chain;
mod compare;
mod copy;
mod engine;
mod policy;
mod references;
mod resolve;
mod watch;

pub use chain::{Chain, DataFile, Layer};
pub use compare::{CompareError, Comparison, compare};
pub use copy::CopyError;
pub use engine::EngineError;
pub use policy::{AccessError, LAYERS_MAX, Policy};
pub use references::ReferenceError;
pub use resolve::{ResolveError, resolve};
pub use watch::{Progress, Watch};
