//! The record that decides where a machine is: `docs/adr/0012-the-source-decides-where-a-machine-is.md`.

use crate::wire::Key;

/// Where a machine is after an attempt to move it. For one [`Key`] this is decided once and for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The source has given it away: it must never run there again, and the target may start it.
    Departed,
    /// It stayed at the source: the target must never start what it holds.
    Stayed,
}

/// An error of a ledger or of whoever asks one.
pub type LedgerError = Box<dyn std::error::Error + Send + Sync>;

/// The source's record of decisions.
pub trait Ledger {
    /// Writes `wanted` unless something is written for `key` already, and returns what is written then. When this returns
    /// `Ok`, the answer survives the death of the process and of the host, and every later call returns the same.
    ///
    /// `Err` means that it is not known what is written. The machine stays paused until a later call says so.
    fn decide(&mut self, key: &Key, wanted: Decision) -> Result<Decision, LedgerError>;
}

/// The target's way to the source's ledger, by another road than the streams that broke.
pub trait Resolver {
    /// Has the source's ledger do `decide(key, Decision::Stayed)` and returns what that returned. `Err` when it could not be
    /// reached: nothing is known then, and the target keeps what it holds, paused.
    fn ask(&mut self, key: &Key) -> Result<Decision, LedgerError>;
}
