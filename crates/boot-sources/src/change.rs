//! What follows from a change of a source, or of the switch for all sources that are shipped.

use spec::Name;

use crate::decide::Gate;
use crate::definition::{BootSource, Retention};
use crate::state::SourceState;

/// What becomes of the alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alias {
    /// It stays as it is.
    Keep,
    /// It leads to the current import, if there is one.
    Lead(Name),
    /// It leads nowhere, until an administrator or an import makes it.
    Unset(Name),
    /// The first is gone, the second takes its place.
    Rename(Name, Name),
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// An import under way is called off: tell [`SourceState::import_cancelled`].
    pub cancel_import: bool,
    /// What becomes of the alias.
    pub alias: Alias,
    /// Ask [`SourceState::removals`] again, or [`SourceState::removals_on_deletion`] where the source was deleted.
    pub collect: bool,
    /// What was refused may be taken now: tell [`SourceState::sync`].
    pub retry: bool,
}

impl Change {
    const NOTHING: Self = Self {
        cancel_import: false,
        alias: Alias::Keep,
        collect: false,
        retry: false,
    };
}

/// A definition was changed. The next [`SourceState::step`] sees to a new schedule or place by itself.
pub fn source_changed(old: &BootSource, new: &BootSource) -> Change {
    let moved = old.source != new.source;
    let alias = if old.managed == new.managed {
        Alias::Keep
    } else {
        Alias::Rename(old.managed.clone(), new.managed.clone())
    };
    Change {
        cancel_import: moved || old.store != new.store || (old.enabled && !new.enabled),
        alias,
        collect: old.imports_to_keep > new.imports_to_keep || old.garbage_collect != new.garbage_collect,
        retry: old.max_size != new.max_size,
    }
}

/// A source was deleted: its imports and its alias stay or go as its retention says.
pub fn source_deleted(source: &BootSource) -> Change {
    match source.retention {
        Retention::RetainAll => Change {
            cancel_import: true,
            ..Change::NOTHING
        },
        Retention::None => Change {
            cancel_import: true,
            alias: Alias::Unset(source.managed.clone()),
            collect: true,
            retry: false,
        },
    }
}

/// The switch for all sources that are shipped was turned. Off: nothing is polled any more, what was imported stays, and the
/// alias leads nowhere, so that an administrator can make it lead to an image of theirs. On: it leads to the newest import
/// again. Custom sources do not mind.
pub fn gate_changed(source: &BootSource, state: &SourceState, old: Gate, new: Gate) -> Change {
    match (old.lets(source), new.lets(source)) {
        (true, false) => Change {
            cancel_import: state.importing().is_some(),
            alias: Alias::Unset(source.managed.clone()),
            collect: false,
            retry: false,
        },
        (false, true) => Change {
            alias: Alias::Lead(source.managed.clone()),
            ..Change::NOTHING
        },
        _ => Change::NOTHING,
    }
}
