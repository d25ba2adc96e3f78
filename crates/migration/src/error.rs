//! Why a migration ends without its machine having moved.

use std::io;
use std::time::Duration;

use crate::ledger::LedgerError;
use crate::machine::Fault;
use crate::section::SectionError;
use crate::wire::{RefuseReason, WireError};

/// What made one side give up.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody said so.
    #[error("the migration was cancelled")]
    Cancelled,
    /// No stream could be opened or will ever come.
    #[error("no stream between source and target; check the address and that the network between them is up")]
    Connect(#[source] io::Error),
    /// A stream broke or carried nonsense.
    #[error("the {stream} stream between source and target broke")]
    Link {
        /// Which.
        stream: &'static str,
        /// How.
        #[source]
        error: WireError,
    },
    /// The target does not want this machine.
    #[error("the target refuses the machine ({reason:?}): {text}")]
    Refused {
        /// Why, for code.
        reason: RefuseReason,
        /// Why, for people.
        text: String,
    },
    /// The other side gave up first.
    #[error("the other side gave up: {0}")]
    PeerGaveUp(String),
    /// A message that has no place here.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// The machine itself could not.
    #[error("the machine could not {what}")]
    Machine {
        /// What it was asked to do.
        what: &'static str,
        /// Why not.
        #[source]
        error: Fault,
    },
    /// Its state can not be carried.
    #[error("the state of the machine can not be carried")]
    Section(#[from] SectionError),
    /// The guest dirties memory faster than it can be sent.
    #[error(
        "not done within the completion timeout of {0:?}; raise it or the bandwidth, or allow auto-converge or post-copy"
    )]
    CompletionTimeout(Duration),
    /// Nothing got closer to its end.
    #[error("no progress for {0:?}; check the network between source and target, or allow auto-converge or post-copy")]
    NoProgress(Duration),
    /// The guest would stand still for too long.
    #[error("no answer within {0:?} while the guest was paused")]
    Handover(Duration),
    /// The source went silent.
    #[error("nothing came for {0:?}")]
    Idle(Duration),
    /// The target asked where the machine is, and was told that it stays.
    #[error("the target gave up waiting, and it is on record that the machine stays")]
    Fenced,
    /// It is not known what the ledger holds.
    #[error("it could not be recorded that the machine departs; it stays paused until the record can be read")]
    Ledger(#[source] LedgerError),
}
