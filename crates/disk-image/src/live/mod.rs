//! Changing what a disk consists of under a running guest.
//!
//! ```text
//!   guest's queues ──▶ Switch ──▶ the disk of the moment
//!                        │ with a job: changes pass its `Ranges`, and go to a mirror's target, too
//!        snapshot: new overlay on top · stream: backing into the overlay · mirror: a copy elsewhere, then pivot
//! ```
//!
//! Jobs block, on threads of their own; queues stay where they are. A job holds requests up twice, when it takes hold of the disk
//! and when it lets go, for as long as requests in flight take to end, and a flush.

mod copying;
mod gate;
mod mirror;
mod ranges;
mod snapshot;
mod stream;
mod switch;
#[cfg(test)]
mod tests;

pub use gate::Busy;
pub use mirror::{Mirror, MirrorError, mirror};
pub use snapshot::{SnapshotError, snapshot};
pub use stream::{StreamError, stream};
pub use switch::Switch;
