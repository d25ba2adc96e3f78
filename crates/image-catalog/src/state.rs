//! States of an image, and what may be asked in each.
//!
//! ```text
//!            Import              Activate             Deactivate
//!   Queued ─────────▶ Importing ─────────▶ Active ◀──────────────▶ Deactivated
//!     │                │  │    ▲             │       Reactivate        │
//!     │           Fail │  │    │ Import      │                         │
//!     │                ▼  │    │             │                         │
//!     │              Failed ───┘             │                         │
//!     │                │  │                  │                         │
//!     └── Delete ──────┴──┴───── Delete ─────┴──────── Delete ─────────┤
//!                                                                      ▼
//!                                                                   Deleting ── Forget ──▶ (no record)
//! ```
//!
//! *Queued*: the record exists, no data does. *Importing*: data comes in, is checked and converted; nothing can be made from
//! it yet. *Active*: complete and verified. *Failed*: the import ended without an image, and left no bytes. *Deactivated*: an
//! administrator keeps others from using it; its bytes stay, and machines that run from it go on. *Deleting*: decided and not
//! finished; nothing leads back.
//!
//! Every state is written down before what it announces is begun, so that a daemon that is killed finds out where it was:
//! [`ImageState::at_start`].

use serde::{Deserialize, Serialize};

/// Where an image is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// A record without data.
    Queued,
    /// Data comes in.
    Importing,
    /// Complete, verified, usable.
    Active,
    /// The import ended without an image.
    Failed,
    /// Complete and kept from use.
    Deactivated,
    /// On its way out.
    Deleting,
}

/// What can be asked of an image, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageAction {
    /// Look at the record.
    Show,
    /// Change fields of the record.
    Edit,
    /// Change what the image is said to be made of.
    EditFormat,
    /// Begin or begin again to bring data in.
    Import,
    /// Take note that all data is in and was verified.
    Activate,
    /// Take note that the import ended without an image.
    Fail,
    /// Make a machine, a volume or a clone from it.
    Boot,
    /// Read its data.
    Download,
    /// Copy it to another store, or take it away from one of several.
    Place,
    /// Publish it elsewhere.
    Push,
    /// Keep it from being used.
    Deactivate,
    /// Let it be used again.
    Reactivate,
    /// Decide that it goes; cancels an import.
    Delete,
    /// Take note that nothing of it is left.
    Forget,
}

impl ImageAction {
    /// Every action.
    pub const ALL: [Self; 14] = [
        Self::Show,
        Self::Edit,
        Self::EditFormat,
        Self::Import,
        Self::Activate,
        Self::Fail,
        Self::Boot,
        Self::Download,
        Self::Place,
        Self::Push,
        Self::Deactivate,
        Self::Reactivate,
        Self::Delete,
        Self::Forget,
    ];
}

/// What an action leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The image in this state, which may be the one it was in.
    State(ImageState),
    /// No record at all.
    Gone,
}

/// An action that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the image is {}, and that does not allow to {}: {}", state.adjective(), action.verb(), state.advice())]
pub struct NotAllowed {
    /// What was asked.
    pub action: ImageAction,
    /// What the image is.
    pub state: ImageState,
}

impl NotAllowed {
    /// `image_state_conflict`, for every pair of action and state.
    pub const fn code(&self) -> &'static str {
        "image_state_conflict"
    }
}

/// What a daemon does with an image it finds in some state when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// Nothing: the state is what it says.
    Leave,
    /// Go on with the import where its source allows that, else note that it failed and remove what is there of it.
    ResumeOrFail,
    /// Remove what is left of it.
    FinishDeletion,
}

impl ImageState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Importing,
        Self::Active,
        Self::Failed,
        Self::Deactivated,
        Self::Deleting,
    ];

    /// What `action` leads to, or `None` where it is not allowed. This table is the only place that says so.
    pub const fn after(self, action: ImageAction) -> Option<Outcome> {
        use ImageAction as A;
        let next = match (self, action) {
            (_, A::Show)
            | (Self::Queued | Self::Importing | Self::Active | Self::Failed | Self::Deactivated, A::Edit)
            | (Self::Queued | Self::Failed, A::EditFormat)
            | (Self::Active, A::Boot | A::Download | A::Place | A::Push) => self,
            (Self::Queued | Self::Failed, A::Import) => Self::Importing,
            (Self::Importing, A::Activate) | (Self::Deactivated, A::Reactivate) => Self::Active,
            (Self::Importing, A::Fail) => Self::Failed,
            (Self::Active, A::Deactivate) => Self::Deactivated,
            (_, A::Delete) => Self::Deleting,
            (Self::Deleting, A::Forget) => return Some(Outcome::Gone),
            _ => return None,
        };
        Some(Outcome::State(next))
    }

    /// Whether `action` is allowed.
    pub const fn may(self, action: ImageAction) -> bool {
        self.after(action).is_some()
    }

    /// What `action` leads to, or why it is not allowed.
    pub fn take(self, action: ImageAction) -> Result<Outcome, NotAllowed> {
        self.after(action).ok_or(NotAllowed { action, state: self })
    }

    /// Whether an administrator may do `action` all the same: a deactivated image can be looked into by those who have to
    /// find out what is wrong with it.
    pub const fn may_as_admin(self, action: ImageAction) -> bool {
        self.may(action) || matches!((self, action), (Self::Deactivated, ImageAction::Download))
    }

    /// What a daemon does about it when it starts.
    pub const fn at_start(self) -> AtStart {
        match self {
            Self::Queued | Self::Active | Self::Failed | Self::Deactivated => AtStart::Leave,
            Self::Importing => AtStart::ResumeOrFail,
            Self::Deleting => AtStart::FinishDeletion,
        }
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Importing => "importing",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Deactivated => "deactivated",
            Self::Deleting => "deleting",
        }
    }

    const fn adjective(self) -> &'static str {
        match self {
            Self::Queued => "without data",
            Self::Importing => "being imported",
            Self::Active => "active",
            Self::Failed => "one whose import failed",
            Self::Deactivated => "deactivated",
            Self::Deleting => "being deleted",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Queued => "import data first",
            Self::Importing => "wait for the import, or delete it",
            Self::Active => "import into a new image, or delete this one",
            Self::Failed => "look at its failure, then import again or delete it",
            Self::Deactivated => "reactivate it first",
            Self::Deleting => "take another image",
        }
    }
}

impl ImageAction {
    const fn verb(self) -> &'static str {
        match self {
            Self::Show => "show it",
            Self::Edit => "edit it",
            Self::EditFormat => "change its format",
            Self::Import => "import into it",
            Self::Activate => "activate it",
            Self::Fail => "note a failure",
            Self::Boot => "make something from it",
            Self::Download => "download it",
            Self::Place => "copy it between stores",
            Self::Push => "publish it",
            Self::Deactivate => "deactivate it",
            Self::Reactivate => "reactivate it",
            Self::Delete => "delete it",
            Self::Forget => "forget it",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_is_the_drawing() {
        use ImageAction::*;
        let allowed = |state: ImageState| {
            ImageAction::ALL
                .into_iter()
                .filter(|action| state.may(*action))
                .collect::<Vec<_>>()
        };
        assert_eq!(allowed(ImageState::Queued), [Show, Edit, EditFormat, Import, Delete]);
        assert_eq!(allowed(ImageState::Importing), [Show, Edit, Activate, Fail, Delete]);
        assert_eq!(
            allowed(ImageState::Active),
            [Show, Edit, Boot, Download, Place, Push, Deactivate, Delete]
        );
        assert_eq!(allowed(ImageState::Failed), [Show, Edit, EditFormat, Import, Delete]);
        assert_eq!(allowed(ImageState::Deactivated), [Show, Edit, Reactivate, Delete]);
        assert_eq!(allowed(ImageState::Deleting), [Show, Delete, Forget]);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let refused = ImageState::Deactivated.take(ImageAction::Boot).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the image is deactivated, and that does not allow to make something from it: reactivate it first"
        );
        assert_eq!(refused.code(), "image_state_conflict");
        assert!(ImageState::Deactivated.may_as_admin(ImageAction::Download));
        assert!(!ImageState::Deactivated.may_as_admin(ImageAction::Boot));
    }

    #[test]
    fn words_are_what_is_stored() {
        for state in ImageState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    proptest! {
        /// Whatever happens: an image boots only after Activate, and never again after Delete.
        #[test]
        fn boots_only_when_verified(actions in proptest::collection::vec(0..ImageAction::ALL.len(), 0..60)) {
            let (mut state, mut verified, mut deleted) = (ImageState::Queued, false, false);
            for action in actions.into_iter().map(|index| ImageAction::ALL[index]) {
                match state.take(action) {
                    Err(refused) => prop_assert_eq!(refused.state, state),
                    Ok(Outcome::Gone) => { prop_assert!(deleted); break }
                    Ok(Outcome::State(next)) => {
                        verified |= action == ImageAction::Activate;
                        deleted |= action == ImageAction::Delete;
                        state = next;
                    }
                }
                if state.may(ImageAction::Boot) {
                    prop_assert!(verified && !deleted);
                }
                if deleted {
                    prop_assert_eq!(state.at_start(), AtStart::FinishDeletion);
                }
            }
        }
    }
}
