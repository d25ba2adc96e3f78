//! Seccomp filters of a process's threads: each kind of thread has a list of the system calls it may make.
//!
//! ```text
//!   main ── confine_threads ──▶ steward (the union of all lists) ── starts every other thread
//!    │                             ▲    │
//!    │ … set-up …                  │    └──▶ new thread ── puts on the list of its kind ──▶ its work
//!    └─ confine_this_thread        └── orders: NewThread::spawn, run_by_steward; forbidden calls are told to it
//! ```
//!
//! A thread inherits the filters of the one that starts it. Without the steward a vCPU thread, in which a guest has a device
//! begin to work, would have to be allowed all that the device's worker is. The steward itself handles nothing a guest wrote.
//!
//! A process that never calls [`confine_threads`] has no filters: there, [`NewThread`] is an ordinary thread.
//!
//! What a filter sees is numbers and the values of arguments, not what addresses point to: no path, and not the flags of
//! `clone3`. So `clone3` is said not to exist, by a filter of its own that all threads have; libc then takes `clone`, whose flags
//! are values, and those of a new thread are all that is allowed. Operations on an io_uring pass by every filter; `uring` binds its rings for that.

mod bell;
mod calls;
mod filter;
mod groups;
mod kind;
mod list;
mod memory;
mod mode;
mod names;
mod steward;
#[cfg(test)]
mod tests;
mod violation;

pub use filter::FilterError;
pub use kind::ThreadKind;
pub use mode::{SeccompMode, UnknownMode};
pub use steward::{ConfineError, LateFilter, NewThread, confine_this_thread, confine_threads, run_by_steward};
pub use violation::Violation;
