//! What is remembered of a source, and its stored form.
//!
//! ```text
//!              step: Poll                 polled: Import
//!   waiting ───────────────▶ (caller ───────────────────▶ importing ──── imported ────▶ waiting, newest is current
//!     ▲  ▲                    polls)                          │  │
//!     │  └── Unchanged, AlreadyThere, Refused, poll_failed    │  └── step: Import (after a restart: go on)
//!     └────────────────── import_failed ──────────────────────┘
//! ```

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::reference::SourceRef;

/// Version of the form that is written.
pub const STATE_VERSION: u32 = 1;
/// Longest message of an error that is remembered, bytes.
const MESSAGE_MAX: usize = 1024;

/// What tells one image of a source from the next: a digest (`sha256:…`) where the source has one, else what the server says
/// of the version, such as an ETag. Compared for equality and never interpreted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SourceDigest(String);

/// Why a text tells no image from another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the source gives no digest that can be kept: 1 to 512 printable characters are")]
pub struct SourceDigestError;

impl SourceDigestError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        "source_digest_invalid"
    }
}

impl FromStr for SourceDigest {
    type Err = SourceDigestError;

    fn from_str(text: &str) -> Result<Self, SourceDigestError> {
        let fits = (1..=512).contains(&text.len()) && !text.chars().any(char::is_control);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(SourceDigestError)
        }
    }
}

impl TryFrom<String> for SourceDigest {
    type Error = SourceDigestError;

    fn try_from(text: String) -> Result<Self, SourceDigestError> {
        text.parse()
    }
}

impl From<SourceDigest> for String {
    fn from(digest: SourceDigest) -> Self {
        digest.0
    }
}

impl fmt::Display for SourceDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image that came from the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// What the source called it.
    pub digest: SourceDigest,
    /// What the store calls it; an image of the catalogue.
    pub image: String,
    /// When it became the current one, the last time it did.
    pub at: Timestamp,
    /// Where it came from; unknown of imports of earlier releases, which are taken for what the source has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SourceRef>,
    /// The store it went to; `None` is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// Where imports come from and go to. An import of another place says nothing of this one: other servers have other versions under
/// the same name, other things have to be proved of what they have, and another store does not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where from.
    pub from: SourceRef,
    /// Where to; `None` is the default store.
    pub store: Option<String>,
}

impl Import {
    /// Whether it is what an import of the same digest would be now.
    pub(crate) fn is_of(&self, place: &Place) -> bool {
        self.store == place.store && self.from.as_ref().is_none_or(|from| *from == place.from)
    }

    /// Whether `newer` is the same in another store.
    pub(crate) fn is_moved_to(&self, newer: &Self) -> bool {
        let is_same = self.digest == newer.digest && (self.from == newer.from || self.from.is_none());
        is_same && self.store != newer.store
    }
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastError {
    /// Stable code of the error, of whichever part it came from.
    pub code: String,
    /// What an operator reads.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Whether an import failed, and not a poll.
    pub importing: bool,
}

impl LastError {
    pub(crate) fn new(code: &str, message: &str, at: Timestamp, importing: bool) -> Self {
        let mut end = message.len().min(MESSAGE_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            code: code.chars().take(64).collect(),
            message: message.get(..end).unwrap_or_default().to_owned(),
            at,
            importing,
        }
    }
}

/// An image that was refused for what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refusal {
    /// What the source calls it.
    pub(crate) digest: SourceDigest,
    /// Why.
    pub(crate) error: LastError,
}

/// What is remembered of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct SourceState {
    /// Where the source led when it was last polled; another place is polled at once.
    pub(crate) source: Option<SourceRef>,
    /// When the last poll or import ended, well or not.
    pub(crate) last_attempt: Option<Timestamp>,
    /// When a poll last had an answer.
    pub(crate) last_success: Option<Timestamp>,
    /// What the last poll that had an answer found.
    pub(crate) seen: Option<SourceDigest>,
    /// Newest first; the first is the current one.
    pub(crate) imports: Vec<Import>,
    /// What is being imported.
    pub(crate) importing: Option<SourceDigest>,
    /// What was refused for what it is; it is not fetched again until an operator asks for it.
    pub(crate) refused: Option<Refusal>,
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// What went wrong last; gone with the next success.
    pub(crate) last_error: Option<LastError>,
    /// An operator wants a poll now.
    pub(crate) sync: bool,
}

impl SourceState {
    /// The import that the alias leads to.
    pub fn current(&self) -> Option<&Import> {
        self.imports.first()
    }

    /// All imports, newest first.
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// What is being imported.
    pub const fn importing(&self) -> Option<&SourceDigest> {
        self.importing.as_ref()
    }

    /// What the last poll that had an answer found.
    pub const fn seen(&self) -> Option<&SourceDigest> {
        self.seen.as_ref()
    }

    /// Failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// What went wrong last, unless something went well since.
    pub const fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// When the last poll or import ended.
    pub const fn last_attempt(&self) -> Option<Timestamp> {
        self.last_attempt
    }

    /// When a poll last had an answer.
    pub const fn last_success(&self) -> Option<Timestamp> {
        self.last_success
    }
}

/// Why a stored state can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a later release.
    #[error(
        "the state of a boot source has form {0}, and this release knows forms up to {STATE_VERSION}: use the release that wrote it"
    )]
    VersionUnknown(u32),
    /// The same digest twice among the imports.
    #[error("the state of a boot source lists {0} twice: restore the registry from a copy")]
    Double(SourceDigest),
}

impl StateError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::VersionUnknown(_) => "boot_source_state_version_unknown",
            Self::Double(_) => "boot_source_state_damaged",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<SourceRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_attempt: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_success: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<SourceDigest>,
    #[serde(default)]
    imports: Vec<Import>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    importing: Option<SourceDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
    #[serde(default)]
    failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error: Option<LastError>,
    #[serde(default)]
    sync: bool,
}

impl From<SourceState> for Written {
    fn from(state: SourceState) -> Self {
        Self {
            version: STATE_VERSION,
            source: state.source,
            last_attempt: state.last_attempt,
            last_success: state.last_success,
            seen: state.seen,
            imports: state.imports,
            importing: state.importing,
            refused: state.refused,
            failures: state.failures,
            last_error: state.last_error,
            sync: state.sync,
        }
    }
}

impl TryFrom<Written> for SourceState {
    type Error = StateError;

    fn try_from(written: Written) -> Result<Self, StateError> {
        if written.version != STATE_VERSION {
            return Err(StateError::VersionUnknown(written.version));
        }
        let mut seen = std::collections::HashSet::new();
        let mut imports = written.imports.iter();
        if let Some(double) = imports.find(|import| !seen.insert((&import.digest, &import.from, &import.store))) {
            return Err(StateError::Double(double.digest.clone()));
        }
        Ok(Self {
            source: written.source,
            last_attempt: written.last_attempt,
            last_success: written.last_success,
            seen: written.seen,
            imports: written.imports,
            importing: written.importing,
            refused: written.refused,
            failures: written.failures,
            last_error: written.last_error,
            sync: written.sync,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_this_one() {
        let at: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let state = SourceState {
            seen: Some("sha256:aa".parse().unwrap()),
            imports: vec![Import {
                digest: "sha256:aa".parse().unwrap(),
                image: "sha256:bb".into(),
                at,
                from: None,
                store: None,
            }],
            last_error: Some(LastError::new("timeout", "the server was silent", at, false)),
            failures: 1,
            ..SourceState::default()
        };
        let text = serde_json::to_string(&state).unwrap();
        let golden = concat!(
            r#"{"version":1,"seen":"sha256:aa","imports":[{"digest":"sha256:aa","image":"sha256:bb","at":"2026-11-22T12:00:00Z"}],"#,
            r#""failures":1,"last_error":{"code":"timeout","message":"the server was silent","at":"2026-11-22T12:00:00Z","importing":false},"sync":false}"#
        );
        assert_eq!(text, golden);
        assert_eq!(serde_json::from_str::<SourceState>(&text).unwrap(), state);
        assert_eq!(
            serde_json::from_str::<SourceState>(r#"{"version":1}"#).unwrap(),
            SourceState::default()
        );
    }

    #[test]
    fn later_forms_and_doubles_are_refused() {
        let told = |text: &str| serde_json::from_str::<SourceState>(text).unwrap_err().to_string();
        assert!(told(r#"{"version":2}"#).contains("form 2"));
        let import = r#"{"digest":"a","image":"b","at":"2026-11-22T12:00:00Z"}"#;
        assert!(told(&format!(r#"{{"version":1,"imports":[{import},{import}]}}"#)).contains("lists a twice"));
        assert!(told(r#"{"version":1,"seen":""}"#).contains("no digest"));
    }
}
