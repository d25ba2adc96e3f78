//! In which stores an image is, and in which it is to be.
//!
//! An import brings an image into one or more stores, a copy into further ones. `importing_to_stores` begins full and empties,
//! `failed_import` begins empty. With `allow_failure` the image is active with the first store that has it; without, only when
//! all have it, and one that fails takes the others back.

use serde::{Deserialize, Serialize};

use crate::state::ImageAction;

/// Where an image is and is to be. No store is in two of the lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Stores that have it, in the order in which they got it.
    pub stores: Vec<String>,
    /// Stores it is still to be brought into.
    #[serde(default)]
    pub importing_to_stores: Vec<String>,
    /// Stores into which it could not be brought.
    #[serde(default)]
    pub failed_import: Vec<String>,
    /// Stores that got it in what is under way; they are taken back when that fails as a whole.
    #[serde(default)]
    fresh: Vec<String>,
    /// Whether it was complete before.
    #[serde(default)]
    is_copy: bool,
    /// Whether a store may fail.
    #[serde(default = "yes")]
    allow_failure: bool,
}

/// The reference's default of `allow_failure`.
const fn yes() -> bool {
    true
}

/// Stores that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreWish {
    /// The default one.
    Default,
    /// These.
    Named(Vec<String>),
    /// All of them.
    All,
}

/// The stores of a host.
#[derive(Debug, Clone, Copy)]
pub struct Stores<'a> {
    /// All that are configured.
    pub all: &'a [String],
    /// The default one.
    pub default: &'a str,
}

/// Why an image can not be brought into stores, or taken from one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// There is none of that name.
    #[error("there is no store {0}: list them to see what there is")]
    StoreUnknown(String),
    /// Nothing was named.
    #[error("no store is named: name one, or ask for all of them")]
    NoStore,
    /// The same one twice.
    #[error("store {0} is named twice")]
    StoreTwice(String),
    /// The store has it.
    #[error("store {0} has the image already: leave it out")]
    AlreadyThere(String),
    /// Copies are made from the default store.
    #[error("the image is not in the default store {0}, from which copies are made: copy it there first")]
    NotInDefault(String),
    /// One at a time.
    #[error("the image is being copied already: wait until that is done")]
    Busy,
    /// The last copy goes with the image only.
    #[error("store {0} has the only copy of the image: delete the image itself")]
    LastCopy(String),
    /// The store does not have it.
    #[error("store {0} does not have the image")]
    NotThere(String),
}

impl PlacementError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::StoreUnknown(_) => "store_unknown",
            Self::NoStore => "store_missing",
            Self::StoreTwice(_) => "store_twice",
            Self::AlreadyThere(_) => "store_has_image",
            Self::NotInDefault(_) => "image_not_in_default_store",
            Self::Busy => "image_copy_in_progress",
            Self::LastCopy(_) => "image_last_copy",
            Self::NotThere(_) => "image_not_in_store",
        }
    }
}

/// What follows from a store that is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placed {
    /// What the image's state takes note of: [`ImageAction::Activate`] or [`ImageAction::Fail`].
    pub action: Option<ImageAction>,
    /// Stores from which the bytes are to be removed again.
    pub take_back: Vec<String>,
}

impl StoreWish {
    /// The stores that are meant.
    fn resolve(&self, stores: Stores<'_>) -> Result<Vec<String>, PlacementError> {
        let names = match self {
            Self::Default => vec![stores.default.to_owned()],
            Self::All => stores.all.to_vec(),
            Self::Named(names) => names.clone(),
        };
        if names.is_empty() {
            return Err(PlacementError::NoStore);
        }
        for (index, name) in names.iter().enumerate() {
            if !stores.all.contains(name) {
                return Err(PlacementError::StoreUnknown(name.clone()));
            }
            if names.iter().take(index).any(|earlier| earlier == name) {
                return Err(PlacementError::StoreTwice(name.clone()));
            }
        }
        Ok(names)
    }
}

impl Placement {
    /// The beginning of an import.
    pub fn import(wish: &StoreWish, stores: Stores<'_>, allow_failure: bool) -> Result<Self, PlacementError> {
        Ok(Self {
            importing_to_stores: wish.resolve(stores)?,
            allow_failure,
            ..Self::default()
        })
    }

    /// The beginning of a copy into further stores. Of all stores, those that have it are left out; a named one that has it
    /// is an error, and so is a copy while another is under way.
    pub fn copy(&self, wish: &StoreWish, stores: Stores<'_>, allow_failure: bool) -> Result<Self, PlacementError> {
        if !self.importing_to_stores.is_empty() {
            return Err(PlacementError::Busy);
        }
        let mut names = wish.resolve(stores)?;
        let in_default = self.stores.iter().chain(&names).any(|name| name == stores.default);
        if !in_default {
            return Err(PlacementError::NotInDefault(stores.default.to_owned()));
        }
        if *wish == StoreWish::All {
            names.retain(|name| !self.stores.contains(name));
        } else if let Some(name) = names.iter().find(|name| self.stores.contains(name)) {
            return Err(PlacementError::AlreadyThere(name.clone()));
        }
        Ok(Self {
            stores: self.stores.clone(),
            importing_to_stores: names,
            failed_import: Vec::new(),
            fresh: Vec::new(),
            is_copy: true,
            allow_failure,
        })
    }

    /// Whether a store may fail.
    pub const fn may_fail(&self) -> bool {
        self.allow_failure
    }

    /// Nobody wants the stores that are left. Returns those from which the bytes are to be removed again: where no store may fail, all
    /// that got it in what was under way.
    pub fn call_off(&mut self) -> Vec<String> {
        self.importing_to_stores.clear();
        let fresh = std::mem::take(&mut self.fresh);
        if self.allow_failure {
            return Vec::new();
        }
        self.stores.retain(|name| !fresh.contains(name));
        fresh
    }

    /// `store` has it now. If it `was_there` before, it is never taken back.
    pub fn succeeded(&mut self, store: &str, was_there: bool) -> Placed {
        if !self.leave_importing(store) {
            return Placed::default();
        }
        let first = self.stores.is_empty();
        self.stores.push(store.to_owned());
        if !was_there {
            self.fresh.push(store.to_owned());
        }
        let done = self.importing_to_stores.is_empty();
        // A copy of an active image changes no state.
        let activates = !self.is_copy && if self.allow_failure { first } else { done };
        if done {
            self.fresh.clear();
        }
        Placed {
            action: activates.then_some(ImageAction::Activate),
            take_back: Vec::new(),
        }
    }

    /// It could not be brought into `store`.
    pub fn failed(&mut self, store: &str) -> Placed {
        if !self.leave_importing(store) {
            return Placed::default();
        }
        self.failed_import.push(store.to_owned());
        let mut take_back = Vec::new();
        if !self.allow_failure {
            self.importing_to_stores.clear();
            take_back = std::mem::take(&mut self.fresh);
            self.stores.retain(|name| !take_back.contains(name));
        }
        let done = self.importing_to_stores.is_empty();
        if done {
            self.fresh.clear();
        }
        let fails = done && self.stores.is_empty();
        Placed {
            action: fails.then_some(ImageAction::Fail),
            take_back,
        }
    }

    /// Takes the copy in one store away; who calls this removes the bytes.
    pub fn remove(&mut self, store: &str) -> Result<(), PlacementError> {
        if !self.stores.iter().any(|name| name == store) {
            return Err(PlacementError::NotThere(store.to_owned()));
        }
        if !self.importing_to_stores.is_empty() {
            return Err(PlacementError::Busy);
        }
        if self.stores.len() == 1 {
            return Err(PlacementError::LastCopy(store.to_owned()));
        }
        self.stores.retain(|name| name != store);
        Ok(())
    }

    /// The same bytes, of which this is one of several records, were taken from `store`, and are `left` in these.
    pub fn taken_from(&mut self, store: &str, left: &[String]) {
        let was_there = self.stores.iter().any(|name| name == store);
        self.stores.retain(|name| name != store);
        if was_there && self.stores.is_empty() {
            self.stores = left.to_vec();
        }
    }

    /// Whether `store` was among those that are under way; it is no longer.
    fn leave_importing(&mut self, store: &str) -> bool {
        let before = self.importing_to_stores.len();
        self.importing_to_stores.retain(|name| name != store);
        self.importing_to_stores.len() < before
    }
}
