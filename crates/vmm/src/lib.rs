//! One machine: specification and open files in, running guest out.
//!
//! ```text
//!   control requests ─┐                                  ┌─▶ answers, events, the last report (Notice)
//!                     ├─▶ Action ─▶ state driver ────────┘
//!   guest, vCPUs ─────┘               │ builds, starts, pauses, tears down
//!                                     ▼
//!              Machine: vCPU threads ─▶ buses ─▶ chipset, PCI ─▶ virtio devices ─▶ disks, taps
//! ```
//!
//! A machine that stands still can be saved into a directory, and another process goes on with it from there: see `saved`. One
//! that runs can be moved to another process: see `moving`.
//!
//! [`spawn`] starts a state driver; all else happens by [`Action`]s. Addresses and interrupts are [`Layout`]'s matter alone,
//! the parts are put together in `build`, and there is nothing that "manages devices": a machine is a list of them.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod action;
mod bars;
mod brake;
mod build;
mod console;
mod disks;
mod driver;
mod files;
mod gate;
mod hardware;
mod interrupts;
mod layout;
mod machine;
mod moving;
mod saved;
mod story;
#[cfg(test)]
mod testing;
mod vcpu;

pub use action::{Action, GuestEvent, Notice, Outlet, Reporter, Ticket};
pub use build::BuildError;
pub use console::Console;
pub use disks::{AttachError, JobNews, StackError};
pub use driver::{DriverHandle, spawn};
pub use files::{ChainFiles, Directories, FilesError, LayerFiles, MachineFiles, SavedFiles, pair, sort};
pub use layout::{DISK_SLOTS, FIRST_DISK_SLOT, FIRST_NET_SLOT, FREE_SLOTS, Layout, NET_SLOTS, RNG_SLOT, SCSI_SLOT};
pub use moving::{Answer, Incoming, MoveOrder, Outcome, Steer, Word};
pub use saved::RestoreError;
