//! How a source is doing, in two conditions.
//!
//! | type | status | reason | when |
//! |---|---|---|---|
//! | `UpToDate` | `True` | `UpToDate` | the newest import is what the source has |
//! | | `False` | `NoDigest` | the source was not asked yet |
//! | | `False` | `NoImport` | the source answered and nothing was imported yet |
//! | | `False` | `Outdated` | the source has something newer |
//! | | `False` | `ImportProgressing` | the first import is under way |
//! | | `False` | `ImportFailed` | the last import failed, or was refused |
//! | | `False` | `NoDefaultStore` | there is no store to import to |
//! | | `Unknown` | `PollFailed` | the source does not answer |
//! | | `Unknown` | `Disabled` | the source is switched off |
//! | `Progressing` | `True` | `ImportProgressing` | an import is under way |
//! | | `False` | `ImportScheduled` | an import failed and is tried again |
//! | | `False` | `NoImport` | nothing is to be imported |
//! | | `False` | `Disabled` | the source is switched off |

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::decide::Gate;
use crate::definition::BootSource;
use crate::state::SourceState;

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionKind {
    /// Whether the newest import is what the source has.
    UpToDate,
    /// Whether an import is under way.
    Progressing,
}

/// Whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// It can not be told.
    Unknown,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The newest import is what the source has.
    UpToDate,
    /// The source was not asked yet.
    NoDigest,
    /// Nothing was imported yet, or nothing is to be.
    NoImport,
    /// The source has something newer.
    Outdated,
    /// An import is under way.
    ImportProgressing,
    /// An import is tried again.
    ImportScheduled,
    /// The last import failed.
    ImportFailed,
    /// The source does not answer.
    PollFailed,
    /// There is no store to import to.
    NoDefaultStore,
    /// The source is switched off.
    Disabled,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why.
    pub reason: Reason,
    /// What an operator reads.
    pub message: String,
    /// When status, reason or message last became what they are.
    pub last_transition: Timestamp,
}

/// The conditions of a source, and which of them are not what they were in `before`: for each an event is due.
pub fn conditions(
    source: &BootSource,
    state: &SourceState,
    gate: Gate,
    before: &[Condition],
    now: Timestamp,
) -> ([Condition; 2], Vec<ConditionKind>) {
    let fresh = [
        (ConditionKind::UpToDate, up_to_date(source, state, gate)),
        (ConditionKind::Progressing, progressing(source, state, gate)),
    ];
    let mut changed = Vec::new();
    let conditions = fresh.map(|(kind, (status, reason, message))| {
        let old = before.iter().find(|old| old.kind == kind);
        let same = old.filter(|old| old.status == status && old.reason == reason && old.message == message);
        if same.is_none() {
            changed.push(kind);
        }
        Condition {
            kind,
            status,
            reason,
            message,
            last_transition: same.map_or(now, |old| old.last_transition),
        }
    });
    (conditions, changed)
}

/// Whether the source should be reported as outdated, and whether that is for lack of a store only: the values of
/// `karat_boot_source_outdated` and its label `pending`.
pub fn outdated(source: &BootSource, state: &SourceState, gate: Gate) -> (bool, bool) {
    let (status, reason, _) = up_to_date(source, state, gate);
    let outdated = status != ConditionStatus::True && reason != Reason::Disabled;
    (outdated, reason == Reason::NoDefaultStore)
}

type Told = (ConditionStatus, Reason, String);

fn up_to_date(source: &BootSource, state: &SourceState, gate: Gate) -> Told {
    use ConditionStatus::{False, True, Unknown};
    let told = |status, reason, message: &str| (status, reason, message.to_owned());
    if !gate.lets(source) {
        return told(Unknown, Reason::Disabled, "the source is switched off and not polled");
    }
    if !gate.has_store {
        let message = "there is no store to import to: name one, or make one the default";
        return told(False, Reason::NoDefaultStore, message);
    }
    if let Some(error) = state.last_error() {
        let reason = if error.importing {
            Reason::ImportFailed
        } else {
            Reason::PollFailed
        };
        let status = if error.importing { False } else { Unknown };
        return told(status, reason, &format!("{}: {}", error.code, error.message));
    }
    match (state.seen(), state.current()) {
        (None, _) => told(False, Reason::NoDigest, "the source was not asked yet"),
        (Some(_), None) if state.importing().is_some() => {
            told(False, Reason::ImportProgressing, "the first import is under way")
        }
        (Some(_), None) => told(False, Reason::NoImport, "nothing was imported yet"),
        (Some(seen), Some(current)) if *seen == current.digest && !current.is_of(&source.place()) => {
            let message = "what the source has is imported anew: it shall come from or go to another place";
            told(False, Reason::Outdated, message)
        }
        (Some(seen), Some(current)) if *seen == current.digest => {
            told(True, Reason::UpToDate, "the newest import is what the source has")
        }
        (Some(seen), Some(_)) => told(False, Reason::Outdated, &format!("the source has {seen}")),
    }
}

fn progressing(source: &BootSource, state: &SourceState, gate: Gate) -> Told {
    use ConditionStatus::{False, True};
    if let Some(digest) = state.importing() {
        return (True, Reason::ImportProgressing, format!("{digest} is being imported"));
    }
    let failed = state.last_error().is_some_and(|error| error.importing);
    let (reason, message) = if !gate.lets(source) {
        (Reason::Disabled, "the source is switched off and not polled")
    } else if failed && !state.is_refusal() {
        (Reason::ImportScheduled, "the import failed and is tried again")
    } else {
        (Reason::NoImport, "nothing is to be imported")
    };
    (False, reason, message.to_owned())
}
