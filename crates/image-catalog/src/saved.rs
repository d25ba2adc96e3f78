//! The state of an image as it is stored, with the version of its form.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::{ImageAction, ImageState, NotAllowed, Outcome};

/// Version of the form that is written.
pub const STATE_VERSION: u32 = 1;

/// Longest text of a failure that is stored, bytes.
const MESSAGE_MAX: usize = 1024;

/// Why an import ended without an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Stable code of the error, of whichever part of the import it came from.
    pub code: String,
    /// What an operator reads.
    pub message: String,
}

impl Failure {
    /// With texts cut to what is stored.
    pub fn new(code: &str, message: &str) -> Self {
        let cut = |text: &str| {
            let mut end = text.len().min(MESSAGE_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.get(..end).unwrap_or_default().to_owned()
        };
        Self {
            code: cut(code),
            message: cut(message),
        }
    }
}

/// State, since when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct SavedState {
    /// Where the image is in its life.
    pub state: ImageState,
    /// Since when.
    pub since: Timestamp,
    /// Why the last import failed; kept until the next one begins.
    pub failure: Option<Failure>,
    /// How often an import into it was begun.
    pub attempts: u32,
}

/// Why a stored state can not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SavedStateError {
    /// Written by a later release.
    #[error(
        "the state of an image has form {0}, and this release knows forms up to {STATE_VERSION}: use the release that wrote it"
    )]
    VersionUnknown(u32),
    /// Failed without a reason, or a reason without having failed.
    #[error("the state of an image is {0} and contradicts its failure: restore the registry from a copy")]
    Contradiction(&'static str),
}

impl SavedStateError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::VersionUnknown(_) => "image_state_version_unknown",
            Self::Contradiction(_) => "image_state_damaged",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    state: ImageState,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    #[serde(default)]
    attempts: u32,
}

impl SavedState {
    /// A new record's.
    pub const fn queued(now: Timestamp) -> Self {
        Self {
            state: ImageState::Queued,
            since: now,
            failure: None,
            attempts: 0,
        }
    }

    /// The state after `action`, or `None` when nothing is left to store.
    pub fn take(&self, action: ImageAction, now: Timestamp) -> Result<Option<Self>, NotAllowed> {
        let Outcome::State(state) = self.state.take(action)? else {
            return Ok(None);
        };
        let mut next = self.clone();
        if state != self.state {
            next.since = now;
            next.state = state;
        }
        match action {
            ImageAction::Import => {
                next.failure = None;
                next.attempts = self.attempts.saturating_add(1);
            }
            ImageAction::Fail => {
                next.failure = Some(Failure::new(
                    "import_failed",
                    "the import failed for a reason that was not noted",
                ));
            }
            _ => {}
        }
        Ok(Some(next))
    }

    /// The state after the import failed for a reason.
    pub fn fail(&self, failure: Failure, now: Timestamp) -> Result<Self, NotAllowed> {
        let next = self.take(ImageAction::Fail, now)?;
        next.map(|next| Self {
            failure: Some(failure),
            ..next
        })
        .ok_or(NotAllowed {
            action: ImageAction::Fail,
            state: self.state,
        })
    }
}

impl From<SavedState> for Written {
    fn from(saved: SavedState) -> Self {
        Self {
            version: STATE_VERSION,
            state: saved.state,
            since: saved.since,
            failure: saved.failure,
            attempts: saved.attempts,
        }
    }
}

impl TryFrom<Written> for SavedState {
    type Error = SavedStateError;

    fn try_from(written: Written) -> Result<Self, SavedStateError> {
        if written.version != STATE_VERSION {
            return Err(SavedStateError::VersionUnknown(written.version));
        }
        let failed = written.state == ImageState::Failed;
        let deleting = written.state == ImageState::Deleting;
        if !deleting && failed != written.failure.is_some() {
            return Err(SavedStateError::Contradiction(written.state.as_str()));
        }
        Ok(Self {
            state: written.state,
            since: written.since,
            failure: written.failure,
            attempts: written.attempts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_life_is_written_down() {
        let saved = SavedState::queued(at(1));
        let saved = saved.take(ImageAction::Import, at(2)).unwrap().unwrap();
        let saved = saved
            .fail(Failure::new("digest_mismatch", "wrong bytes"), at(3))
            .unwrap();
        assert_eq!(saved.failure.as_ref().unwrap().code, "digest_mismatch");
        let edited = saved.take(ImageAction::Edit, at(4)).unwrap().unwrap();
        assert_eq!((edited.since, edited.failure.is_some()), (at(3), true));
        let saved = edited.take(ImageAction::Import, at(5)).unwrap().unwrap();
        assert_eq!((saved.attempts, saved.failure.clone()), (2, None));
        let saved = saved.take(ImageAction::Activate, at(6)).unwrap().unwrap();
        let saved = saved.take(ImageAction::Delete, at(7)).unwrap().unwrap();
        assert_eq!(saved.take(ImageAction::Forget, at(8)).unwrap(), None);
    }

    #[test]
    fn what_was_stored_reads_the_same() {
        let mut saved = SavedState::queued(at(1));
        loop {
            let text = serde_json::to_string(&saved).unwrap();
            assert_eq!(serde_json::from_str::<SavedState>(&text).unwrap(), saved);
            saved = match saved.state {
                ImageState::Queued => saved.take(ImageAction::Import, at(2)).unwrap().unwrap(),
                ImageState::Importing => saved.take(ImageAction::Fail, at(3)).unwrap().unwrap(),
                _ => break,
            };
        }
        let golden = r#"{"version":1,"state":"failed","since":"1970-01-01T00:00:03Z","failure":{"code":"import_failed","message":"the import failed for a reason that was not noted"},"attempts":1}"#;
        assert_eq!(serde_json::to_string(&saved).unwrap(), golden);
    }

    #[test]
    fn later_forms_and_contradictions_are_refused() {
        let told = |text: &str| serde_json::from_str::<SavedState>(text).unwrap_err().to_string();
        assert!(told(r#"{"version":2,"state":"active","since":"1970-01-01T00:00:00Z"}"#).contains("form 2"));
        assert!(told(r#"{"version":1,"state":"failed","since":"1970-01-01T00:00:00Z"}"#).contains("contradicts"));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let failure = Failure::new("c", &"ä".repeat(1000));
        assert_eq!(failure.message.len(), MESSAGE_MAX);
        let failure = Failure::new("c", &format!("a{}", "ä".repeat(1000)));
        assert_eq!(failure.message.len(), MESSAGE_MAX - 1);
    }
}
