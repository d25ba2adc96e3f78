//! What of a device is saved, and how it gets it back.
//!
//! ```text
//!   old process:  running ── pause() + drained ──▶ paused ── Migrate::save ──▶ sections
//!   new process:  built ── Migrate::load(sections) ──▶ paused ── resume() ──▶ running
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use savestate::{LoadError, Section, Sections};

/// A device's answer to the question what of it moves to another process. There is no default: a device that has forgotten
/// its state would be found out after the first migration.
pub enum Migration<'a> {
    /// Nothing: it is the same at every moment.
    Stateless,
    /// Its state, in sections.
    Sections(&'a dyn Migrate),
    /// It can not, and so its machine can not.
    Immovable {
        /// Why, for an operator.
        why: &'static str,
    },
}

/// State that is saved and loaded.
pub trait Migrate {
    /// The state as it is now, under the device's name. Legal while it stands still (built, or paused and drained), and changes
    /// nothing: saving twice gives the same bytes.
    ///
    /// # Errors
    /// It runs.
    fn save(&self) -> Result<Vec<Section>, SaveError>;

    /// Takes its sections out of `sections`, and becomes what they say. Legal while it stands still; afterwards it is paused,
    /// and goes on by [`crate::Device::resume`]. Sections come from anywhere: whatever is in them, this ends in a device that
    /// keeps its invariants, or in an error, after which the device is good for nothing but being dropped.
    ///
    /// # Errors
    /// It runs, a section is missing or damaged, or it is the state of another device.
    fn load(&self, sections: &mut Sections) -> Result<(), LoadError>;
}

/// Why state can not be saved.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum SaveError {
    /// It runs.
    #[error("{0} runs: state is saved while it stands still")]
    Running(String),
    /// It can not be saved at all.
    #[error("{name} can not be saved: {why}")]
    Immovable {
        /// The device.
        name: String,
        /// Why.
        why: &'static str,
    },
}

/// Whether a device runs, as its state driver told it.
#[derive(Debug, Default)]
pub struct Motion(AtomicBool);

impl Motion {
    /// It runs from now on.
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// It stands still from now on.
    pub fn hold(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// For [`Migrate::save`].
    ///
    /// # Errors
    /// It runs.
    pub fn may_save(&self, name: &str) -> Result<(), SaveError> {
        match self.is_running() {
            true => Err(SaveError::Running(name.to_owned())),
            false => Ok(()),
        }
    }

    /// For [`Migrate::load`].
    ///
    /// # Errors
    /// It runs.
    pub fn may_load(&self, name: &str) -> Result<(), LoadError> {
        match self.is_running() {
            true => Err(LoadError::Running(name.to_owned())),
            false => Ok(()),
        }
    }
}
