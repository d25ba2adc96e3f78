//! Figures of disk images: Karat's engine and QEMU's on the same files, in alternating rounds.
//!
//! Each measurement is a process of its own, on either side, so that both are timed and their processor time is counted alike.
//! Requests follow `qemu-img bench`: number i goes to byte `i * step` modulo the disk, which with a large odd number of blocks as
//! step is as good as random to caches that all data is in anyway.

mod cases;
mod files;
mod karat;
mod process;
mod whole;

pub use cases::figures;
pub use files::Files;
pub use karat::{convert, open, run};
pub(crate) use process::children_seconds;
pub use process::{Load, allow_deep_stacks};
