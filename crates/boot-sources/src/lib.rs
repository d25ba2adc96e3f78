//! Boot sources: images that are tracked.
//!
//! A boot source says where an image comes from, when to look for a newer one, and which alias (`managed`) leads to the newest
//! that was imported. This crate holds the definitions and every decision; it asks no server, touches no store and reads no
//! clock. Who uses it stores a [`SourceState`] per source, calls [`SourceState::step`], does what it says, and tells the outcome.
//!
//! - [`read_directories`] reads what is shipped and what administrators wrote; [`BootSource::check`] checks what came over the API.
//! - [`Schedule`] is five fields of cron in UTC; [`PollTimes`] moves it by an offset of the source's own.
//! - [`SourceState`] is what is remembered: imports, what was seen, failures. Its stored form has a version.
//! - [`source_changed`], [`source_deleted`], [`gate_changed`] say what follows from a change of a definition.
//! - [`conditions`] tells how a source is doing.
//!
//! # Rules
//!
//! - A new source is polled at once, and so is one that now leads elsewhere or is switched on again with a slot missed.
//!   Missed slots are made up for by one poll, however many they were.
//! - After a failure nothing is tried for 60 s, then 120 s and so on up to an hour; then the source is polled again, whatever its
//!   schedule says. An image that was refused for what it is (signature, format, size) is not fetched again: the source is
//!   polled by its schedule, and something else is imported when it comes, or the same when an operator asks ([`SourceState::sync`]).
//! - The alias changes when an import is complete, never before; machines that exist keep what they were made from.
//! - An import in use is never removed, the newest one neither.
//! - What is shipped can be switched off as a whole: imports stay, aliases lead nowhere. Switched off one by one or deleted, imports
//!   and alias stay (unless `retention = "None"`).
//!
//! # Codes
//!
//! | code | of | meaning |
//! |---|---|---|
//! | `boot_source_invalid` | [`spec::Problems`] of [`BootSource::check`] | fields that can not be accepted, all of them |
//! | `boot_source_file_invalid` | [`FileProblem`] | something wrong in a file, with its line |
//! | `schedule_invalid` | [`ScheduleError`] | not five fields, or a field that does not read |
//! | `schedule_never_fires` | [`ScheduleError`] | 30 February |
//! | `source_digest_invalid` | [`SourceDigestError`] | a server's answer that can not be kept |
//! | `boot_source_state_version_unknown` | [`StateError`] | stored by a later release |
//! | `boot_source_state_damaged` | [`StateError`] | stored state that contradicts itself |
//!
//! # Metrics
//!
//! What the rules in `packaging/prometheus/karat.rules.yaml` read. [`METRICS`] is this table for a test.
//!
//! | metric | type | labels | meaning |
//! |---|---|---|---|
//! | `karat_boot_source_outdated` | gauge | `name`, `pending` | 1 where [`outdated`] says so; `pending` is `true` for lack of a store only |
//! | `karat_boot_source_failures` | gauge | `name` | failures since the last success: [`SourceState::failures`] |
//! | `karat_boot_source_last_success_timestamp_seconds` | gauge | `name` | [`SourceState::last_success`]; absent before the first |
//! | `karat_image_import_restarts_total` | counter | `image` | how often the import into an image was begun again |
//! | `karat_image_service_ready` | gauge | | 1 while images can be imported and used |
//! | `karat_store_info` | gauge | `store`, `default`, `complete`, `clone` | always 1; `complete` is `false` while it is not known whether its files can share blocks, `clone` is `overlay`, `reflink` or `copy` |
//! | `karat_store_available` | gauge | `store` | 0 while its mount is lost or it can only be read |
//! | `karat_store_shares_root_filesystem` | gauge | `store` | 1 while it is on the file system of `/` |
//! | `karat_store_free_bytes`, `karat_store_size_bytes` | gauge | `store` | room on its file system |

mod change;
mod condition;
mod cron_field;
mod decide;
#[cfg(test)]
mod decide_tests;
mod definition;
#[cfg(test)]
mod model_tests;
mod poll_times;
mod read;
#[cfg(test)]
mod read_tests;
mod reference;
mod retention;
mod schedule;
mod state;

pub use change::{Alias, Change, gate_changed, source_changed, source_deleted};
pub use condition::{Condition, ConditionKind, ConditionStatus, Reason, conditions, outdated};
pub use decide::{BACKOFF_FIRST_S, BACKOFF_MAX_S, FailureKind, Finding, Gate, Step, backoff};
pub use definition::{
    BootSource, BootSourceWish, GarbageCollect, IMPORTS_TO_KEEP_DEFAULT, IMPORTS_TO_KEEP_MAX, Origin, Retention,
    STORE_DEFAULT,
};
pub use poll_times::{JITTER_DEFAULT_S, JITTER_MAX_S, PollTimes};
pub use read::{CUSTOM_DIRECTORY, FileProblem, Found, SOURCES_MAX, SYSTEM_DIRECTORY, read_directories};
pub use reference::{SourceRef, SourceWish};
pub use schedule::{Schedule, ScheduleError};
pub use state::{Import, LastError, Place, STATE_VERSION, SourceDigest, SourceDigestError, SourceState, StateError};

/// Every metric that the shipped alerting rules may read.
pub const METRICS: [&str; 10] = [
    "karat_boot_source_outdated",
    "karat_boot_source_failures",
    "karat_boot_source_last_success_timestamp_seconds",
    "karat_image_import_restarts_total",
    "karat_image_service_ready",
    "karat_store_info",
    "karat_store_available",
    "karat_store_shares_root_filesystem",
    "karat_store_free_bytes",
    "karat_store_size_bytes",
];
