//! A single-thread io_uring executor with owned buffers: the data path's only runtime.
//!
//! ```text
//!   worker thread                                            other threads
//!   ┌──────────────────────────────────────────────┐
//!   │ Executor ── block_on(future)                 │ ◀────── Bell::ring, any Waker
//!   │    │  └──── spawn'ed tasks                   │         (an eventfd gets it out of its wait)
//!   │   Ring ──── read · write · sync · allocate   │
//!   │    │        receive · send · readable        │
//!   │    │        read_event · sleep  ─▶ Op        │
//!   │  io_uring: one io_uring_enter per turn       │
//!   └──────────────────────────────────────────────┘
//! ```
//!
//! Whatever the kernel is told an address of belongs to the operation until it completes, whether anybody still waits for it
//! or not; so no future that is dropped, and no executor that is, leaves the kernel with memory that is used for something else.
//! Forgetting a future or the executor (`mem::forget`) leaks buffers, and does no other harm.
//!
//! Where io_uring may not be used, threads do the same by ordinary system calls ([`EngineChoice`]); nothing else changes.
//!
//! What io_uring can not do and disks need (locks, `BLKDISCARD`) is in [`blocking`], as plain calls.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod action;
mod bell;
pub mod blocking;
mod engine;
mod event;
mod executor;
mod file;
mod flight;
mod immediate;
mod inner;
mod kept;
mod notice;
mod offload;
mod op;
mod outcome;
mod patience;
mod pool;
mod prompt;
mod race;
mod ring;
mod setup;
mod task;
#[cfg(test)]
mod tests;

pub use bell::Bell;
pub use executor::{Executor, RingError};
pub use file::File;
pub use immediate::Immediate;
pub use kept::kept;
pub use offload::{Offloaded, offload};
pub use op::{Canceller, Op};
pub use race::{First, race};
pub use ring::{Allocation, Moved, NoExecutor, Ring, SyncScope};
pub use setup::{EngineChoice, SetupError, choose_engine, probe};
pub use task::Task;
