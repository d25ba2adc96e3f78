//! End-to-end harness: real daemons and real guests.
//!
//! A scenario gets an [`Environment`], starts [`Daemon`]s of its own in directories of their own, drives them through the API
//! like any client, and talks to its guests over their serial consoles ([`Guest`]). It says what went wrong by returning an
//! error; nothing it started survives it.

mod daemon;
mod disk;
mod environment;
mod guest;
pub mod scenarios;
mod tap;

pub use daemon::Daemon;
pub use disk::{PatternDisk, first_difference};
pub use environment::{Environment, Kernel};
pub use guest::Guest;
pub use tap::Tap;
