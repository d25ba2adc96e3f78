//! A machine that moves to another process, or comes from one.
//!
//! ```text
//!   karat-vmm ─▶ Action::Depart, Arrive ─▶ state driver ── spawns ──▶ migration thread: migration::depart, arrive
//!                                            ▲   │  ▲                    │ asks, one MoveOrder at a time, and waits
//!                                            │   │  └────────────────────┘
//!      Action::Steer (the daemon's word) ────┘   └── Word ──▶ migration thread: what is on record, new streams
//! ```
//!
//! The state driver stays the one owner of the machine: the migration thread holds nothing of it but its memory, and has
//! everything else done by the driver. What streams are made of is `karat-vmm`'s matter, what goes over them that of `migration`.

mod absence;
mod announce;
mod arrive;
mod depart;
mod memory;
mod order;
mod plan;
mod progress;

use std::sync::mpsc;
use std::time::Instant;

use control::Refusal;
use migration::{Handle, StateCost};

pub(crate) use announce::spawn as announce;
pub use arrive::Incoming;
pub(crate) use arrive::{Coming, spawn as spawn_arrival};
pub(crate) use depart::{Leaving, spawn as spawn_departure};
pub(crate) use order::Asking;
pub use order::{Answer, MoveOrder, Outcome, Steer, Word};

/// A move that is under way, as the driver knows it.
pub(crate) struct Move {
    /// Which build of the machine it is about. What is asked for another one is refused.
    pub(crate) generation: u32,
    /// To the migration thread.
    pub(crate) words: mpsc::Sender<Word>,
    /// Of a departure.
    pub(crate) handle: Option<Handle>,
    /// The machine was paused before the move, and is to be after it.
    pub(crate) paused_before: bool,
    /// The move itself has paused it.
    pub(crate) held: bool,
    /// Somebody was asked for what is on record, and has not answered.
    pub(crate) undecided: bool,
    /// What saving costs, and when that was found out.
    pub(crate) cost: Option<(StateCost, Instant)>,
    /// When an arriving machine's state came.
    pub(crate) loaded_at: Option<Instant>,
}

/// Why a move can not begin.
pub(crate) fn refused(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        kind: control::RefusalKind::Failed,
        message: format!("the machine can not be moved: {}", crate::story::whole(error)),
    }
}
