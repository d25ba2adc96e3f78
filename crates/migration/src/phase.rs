//! How far a migration is, as its owner is told.
//!
//! ```text
//!   Pending ──▶ Scheduling ──▶ PreparingTarget ──▶ TargetReady ──▶ Running ──▶ Succeeded
//!      │            │                │                  │             │
//!      └────────────┴────────────────┴──────────────────┴─────────────┴──▶ Failed | Cancelled
//! ```
//!
//! *Pending* waits for its turn, *Scheduling* for a place and the preflight of both sides: both belong to the daemon. The source
//! takes over at *PreparingTarget*: streams are opened, both sides agree. *TargetReady*: they did; nothing has been sent.
//! *Running*: memory moves. Once the departure is recorded, *Running* ends in *Succeeded* and in nothing else, however long a
//! post-copy has to wait for its link.

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits for its turn.
    Pending,
    /// A place is looked for.
    Scheduling,
    /// Both sides get to know each other.
    PreparingTarget,
    /// Both are ready.
    TargetReady,
    /// Memory moves.
    Running,
    /// The machine runs at the target.
    Succeeded,
    /// The machine stayed at the source.
    Failed,
    /// The machine stayed at the source because somebody said so.
    Cancelled,
}

impl Phase {
    /// Whether `next` may follow.
    pub fn may(self, next: Self) -> bool {
        use Phase::{Cancelled, Failed, Pending, PreparingTarget, Running, Scheduling, Succeeded, TargetReady};
        match self {
            Pending => matches!(next, Scheduling | Failed | Cancelled),
            Scheduling => matches!(next, PreparingTarget | Failed | Cancelled),
            PreparingTarget => matches!(next, TargetReady | Failed | Cancelled),
            TargetReady => matches!(next, Running | Failed | Cancelled),
            Running => matches!(next, Succeeded | Failed | Cancelled),
            Succeeded | Failed | Cancelled => false,
        }
    }

    /// True for the last ones.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}
