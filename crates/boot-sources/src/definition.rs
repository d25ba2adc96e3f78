//! A boot source: an image that is tracked.

use serde::{Deserialize, Serialize};
use spec::{ByteSize, Name, Problems};

use crate::poll_times::{JITTER_DEFAULT_S, JITTER_MAX_S, PollTimes};
use crate::reference::{SourceRef, SourceWish};
use crate::schedule::Schedule;
use crate::state::Place;

/// Imports that are kept where a definition does not say how many.
pub const IMPORTS_TO_KEEP_DEFAULT: u32 = 3;
/// Most imports that can be kept.
pub const IMPORTS_TO_KEEP_MAX: u32 = 100;
/// What the store in the state directory is called.
pub const STORE_DEFAULT: &str = "default";
/// Longest description, bytes.
const DESCRIPTION_MAX: usize = 255;

/// Who defined a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It is shipped.
    System,
    /// An administrator wrote it, as a file or over the API.
    Custom,
}

/// What becomes of imports that a newer one has superseded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GarbageCollect {
    /// Those beyond `imports_to_keep` that nothing uses are removed, oldest first.
    #[default]
    Outdated,
    /// They stay.
    Never,
}

/// What becomes of the imports when the source itself is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retention {
    /// They stay, and so does the alias.
    #[default]
    RetainAll,
    /// Those that nothing uses are removed, and the alias goes.
    None,
}

/// A boot source as somebody wrote it. Unknown fields are errors. A custom definition with the name of a system one changes
/// what it names there and leaves the rest; any other needs `source`, `schedule` and `managed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootSourceWish {
    /// 1–63 of `[a-z0-9-]`, unique.
    pub name: String,
    /// A line that tells what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where images come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceWish>,
    /// When to look for a newer one: five cron fields in UTC, as `0 */12 * * *`, or `@daily` and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How much later than the schedule it may be polled, seconds, up to a day. Default: 300. The actual amount follows from
    /// the name and is never more than half of the schedule's shortest gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_seconds: Option<u32>,
    /// Alias that machines refer to; it leads to the newest import. Unique among sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<String>,
    /// How many imports are kept, 1–100. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imports_to_keep: Option<u32>,
    /// What becomes of older ones. Default: `Outdated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub garbage_collect: Option<GarbageCollect>,
    /// What becomes of all when the source is deleted. Default: `RetainAll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Whether it is polled. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Store the imports go to. Default: the default store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Largest disk that is imported. Default: what the daemon allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
}

/// Names of the fields, for messages and for reading files.
pub(crate) const FIELDS: [&str; 12] = [
    "name",
    "description",
    "source",
    "schedule",
    "jitter_seconds",
    "managed",
    "imports_to_keep",
    "garbage_collect",
    "retention",
    "enabled",
    "store",
    "max_size",
];

/// A boot source that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// Its name.
    pub name: Name,
    /// Who defined it first; an override does not change that.
    pub origin: Origin,
    /// What it is.
    pub description: String,
    /// Where images come from.
    pub source: SourceRef,
    /// When to look.
    pub schedule: Schedule,
    /// How much later at most, seconds.
    pub jitter_seconds: u32,
    /// Alias that machines refer to.
    pub managed: Name,
    /// How many imports are kept.
    pub imports_to_keep: u32,
    /// What becomes of older ones.
    pub garbage_collect: GarbageCollect,
    /// What becomes of all on deletion.
    pub retention: Retention,
    /// Whether it is polled.
    pub enabled: bool,
    /// Store the imports go to; `None` is the default one.
    pub store: Option<Name>,
    /// Largest disk that is imported.
    pub max_size: Option<ByteSize>,
}

impl BootSource {
    /// Checks what was written, on top of the source it overrides if there is one, and tells everything that is wrong.
    pub fn check(wish: &BootSourceWish, base: Option<&Self>, origin: Origin) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let name = problems.take("name", wish.name.parse());
        let source = match &wish.source {
            Some(source) => SourceRef::check(source, "source", &mut problems),
            None => inherited("source", base.map(|base| base.source.clone()), &mut problems),
        };
        let schedule = match &wish.schedule {
            Some(text) => problems.take("schedule", text.parse()),
            None => inherited("schedule", base.map(|base| base.schedule.clone()), &mut problems),
        };
        let managed = match &wish.managed {
            Some(text) => problems.take("managed", text.parse()),
            None => inherited("managed", base.map(|base| base.managed.clone()), &mut problems),
        };
        let store = match &wish.store {
            // By its name or by none: it is the same store.
            Some(text) => problems
                .take("store", text.parse::<Name>())
                .filter(|name| name.as_str() != STORE_DEFAULT),
            None => base.and_then(|base| base.store.clone()),
        };
        let description = wish
            .description
            .clone()
            .or_else(|| base.map(|base| base.description.clone()));
        let description = description.unwrap_or_default();
        if description.len() > DESCRIPTION_MAX || description.chars().any(char::is_control) {
            let message = format_args!("take one line of at most {DESCRIPTION_MAX} bytes");
            problems.add("description", message);
        }
        let keep = wish.imports_to_keep.or_else(|| base.map(|base| base.imports_to_keep));
        let keep = keep.unwrap_or(IMPORTS_TO_KEEP_DEFAULT);
        check_range("imports_to_keep", keep, 1, IMPORTS_TO_KEEP_MAX, &mut problems);
        let jitter = wish.jitter_seconds.or_else(|| base.map(|base| base.jitter_seconds));
        let jitter = jitter.unwrap_or(JITTER_DEFAULT_S);
        check_range("jitter_seconds", jitter, 0, JITTER_MAX_S, &mut problems);
        let max_size = wish.max_size.or_else(|| base.and_then(|base| base.max_size));
        if max_size.is_some_and(|size| size.bytes() == 0) {
            problems.add(
                "max_size",
                "0 would let nothing in; leave it out for what the daemon allows",
            );
        }
        let (Some(name), Some(source), Some(schedule), Some(managed)) = (name, source, schedule, managed) else {
            return Err(problems);
        };
        let gc = wish.garbage_collect.or_else(|| base.map(|base| base.garbage_collect));
        let retention = wish.retention.or_else(|| base.map(|base| base.retention));
        problems.into_result(Self {
            name,
            origin: base.map_or(origin, |base| base.origin),
            description,
            source,
            schedule,
            jitter_seconds: jitter,
            managed,
            imports_to_keep: keep,
            garbage_collect: gc.unwrap_or_default(),
            retention: retention.unwrap_or_default(),
            enabled: wish.enabled.or_else(|| base.map(|base| base.enabled)).unwrap_or(true),
            store,
            max_size,
        })
    }

    /// Where its imports come from and go to.
    pub fn place(&self) -> Place {
        Place {
            from: self.source.clone(),
            store: self.store.as_ref().map(ToString::to_string),
        }
    }

    /// The times at which it is polled.
    pub fn poll_times(&self) -> PollTimes {
        PollTimes::new(self.name.as_str(), &self.schedule, self.jitter_seconds)
    }
}

/// What the overridden source has; a problem where there is none.
fn inherited<T>(field: &str, base: Option<T>, problems: &mut Problems) -> Option<T> {
    if base.is_none() {
        problems.add(
            field,
            "missing; only what changes a system source of the same name can leave it out",
        );
    }
    base
}

fn check_range(field: &str, value: u32, min: u32, max: u32, problems: &mut Problems) {
    if !(min..=max).contains(&value) {
        problems.add(field, format_args!("{value}; take {min} to {max}"));
    }
}
