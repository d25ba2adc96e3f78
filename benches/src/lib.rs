//! Benches and figures, side by side with peers in the same run.
//!
//! A figure is a number with a name, a unit and, where there is one, a peer's number from the same rounds: machines are noisy, and
//! only ratios within a run mean anything. Nothing here asserts; a figure that misses its target says `short`.

pub mod disk;
mod figure;
pub mod images;
mod memory;
mod peer;

pub use figure::{Figure, Target, median};
pub use memory::{daemon_rss_kib, machine_rss_kib};
pub use peer::Microvm;
