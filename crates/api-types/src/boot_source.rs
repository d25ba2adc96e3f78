//! Boot sources: images that are tracked.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::ByteSize;
use utoipa::ToSchema;

/// Where a boot source's images come from: exactly one of `registry`, `url`, `s3` and `file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSourceFrom {
    /// A container disk: `docker://quay.io/containerdisks/debian:12`; the beginning may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// An image on a web server: `https://…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// An object in a store: `s3://bucket/key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<String>,
    /// A file on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Beside `registry`: `pod`, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_method: Option<String>,
    /// Beside `url`: a file of checksums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<String>,
    /// Beside `checksums`: its detached OpenPGP signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums_signature: Option<String>,
}

/// What becomes of imports that a newer one has superseded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum BootSourceGarbageCollect {
    /// Those beyond `imports_to_keep` that nothing uses are removed, oldest first.
    Outdated,
    /// They stay.
    Never,
}

/// What becomes of the imports when the source itself is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum BootSourceRetention {
    /// They stay, and so does the alias.
    RetainAll,
    /// Those that nothing uses are removed, and the alias goes.
    None,
}

/// A boot source as somebody writes it. On top of one that is defined in a file, it changes what it names and leaves the rest; any
/// other needs `source`, `schedule` and `managed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSourceWish {
    /// A line that tells what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where images come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<BootSourceFrom>,
    /// When to look for a newer one: five cron fields in UTC, as `0 */12 * * *`, or `@daily` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How much later than the schedule it may be polled, seconds, up to a day. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_seconds: Option<u32>,
    /// Alias that machines refer to; it leads to the newest import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<String>,
    /// How many imports are kept, 1–100. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imports_to_keep: Option<u32>,
    /// What becomes of older ones. Default: `Outdated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub garbage_collect: Option<BootSourceGarbageCollect>,
    /// What becomes of all when the source is deleted. Default: `RetainAll`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<BootSourceRetention>,
    /// Whether it is polled. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Store the imports go to. Default: the default store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Largest disk that is imported. Default: what the daemon allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
}

/// A boot source: what it is, and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSource {
    /// Its name.
    pub name: String,
    /// `system` where it is shipped, else `custom`.
    pub origin: String,
    /// All its fields, defaults included.
    pub definition: BootSourceWish,
    /// What of that was written over the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<BootSourceWish>,
    /// The file that defines it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined_in: Option<String>,
    /// Imports, newest first; the alias leads to the first.
    pub imports: Vec<BootSourceImport>,
    /// What is being imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importing: Option<String>,
    /// When it is polled next, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_poll: Option<Timestamp>,
    /// When the last poll or import ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_attempt: Option<Timestamp>,
    /// When a poll last had an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_success: Option<Timestamp>,
    /// Failures since then.
    pub failures: u32,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<BootSourceError>,
    /// `UpToDate` and `Progressing`.
    pub conditions: Vec<BootSourceCondition>,
    /// Whether it should be reported as outdated.
    #[serde(default)]
    pub outdated: bool,
}

/// An image that came from a boot source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSourceImport {
    /// What the source calls it.
    pub digest: String,
    /// Id of the image.
    pub image: String,
    /// When it became the current one.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// What went wrong with a boot source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSourceError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether an import failed, and not a poll.
    pub importing: bool,
}

/// How a boot source is doing, in one respect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSourceCondition {
    /// `UpToDate` or `Progressing`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word: why.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it last became what it is.
    #[schema(value_type = String, format = DateTime)]
    pub last_transition: Timestamp,
}

/// All boot sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSourceList {
    /// By name.
    pub items: Vec<BootSource>,
    /// What is wrong with definitions in files, each with its file and line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}
