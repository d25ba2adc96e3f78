//! Kinds, versions, and the way from an old one to the newest.

use crate::decode::{DecodeError, Decoder};
use crate::field::Field;
use crate::section::Section;

/// Names the format of a section.
pub trait Schema {
    /// What it is the state of; 1–64 of `a-z`, `0-9`, `-`. Never changes, and never means something else.
    const KIND: &'static str;
    /// Grows by one whenever a field comes, goes or changes its meaning.
    const VERSION: u32;
}

/// State that can be saved to a section, and loaded from one of this version or an older one. Declared by [`crate::section!`].
pub trait SaveState: Schema + Field {
    /// The version before this one, or [`Never`].
    type Older: SaveState;

    /// Makes this version from the one before it. What is new gets the value that the older program acted by.
    fn upgrade(older: Self::Older) -> Self;

    /// The section, which belongs to `name`.
    fn save(&self, name: &str) -> Section {
        let mut body = Vec::new();
        self.encode(&mut body);
        Section::new(Self::KIND, name, Self::VERSION, body)
    }

    /// The state in `section`, upgraded where it is old.
    ///
    /// # Errors
    /// It is of another kind, of a later version, or its bytes are not the fields of its version.
    fn load(section: &Section) -> Result<Self, LoadError> {
        if section.kind() != Self::KIND {
            let wanted = Self::KIND;
            return Err(LoadError::Kind {
                section: section.title(),
                wanted,
            });
        }
        let (section_version, title) = (section.version(), section.title());
        if section_version > Self::VERSION || section_version == 0 {
            return Err(LoadError::Version {
                section: title,
                version: section_version,
                newest: Self::VERSION,
            });
        }
        let mut from = Decoder::new(section.body());
        Self::decode_version(section_version, &mut from)
            .and_then(|state| from.finish().map(|()| state))
            .map_err(|source| LoadError::Fields {
                section: title,
                version: section_version,
                source,
            })
    }

    /// Takes the fields of `version`, which is not later than this one.
    fn decode_version(version: u32, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        const {
            assert!(
                Self::VERSION == <Self::Older as Schema>::VERSION + 1,
                "each version names the one just before it"
            );
        }
        if version == Self::VERSION {
            Self::decode(from)
        } else {
            Self::Older::decode_version(version, from).map(Self::upgrade)
        }
    }
}

/// Before the first version there was nothing.
#[derive(Debug)]
pub enum Never {}

impl Schema for Never {
    const KIND: &'static str = "never";
    const VERSION: u32 = 0;
}

impl Field for Never {
    const LEAST: usize = 1;

    fn encode(&self, _out: &mut Vec<u8>) {
        match *self {}
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Err(from.bad_value("the versions there are"))
    }
}

impl SaveState for Never {
    type Older = Self;

    fn upgrade(older: Self) -> Self {
        older
    }

    fn decode_version(_version: u32, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Self::decode(from)
    }
}

/// Why state can not be loaded.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// A section that is needed is not there.
    #[error("saved state has no section {0}: it is of another machine, or incomplete")]
    Missing(String),
    /// Another kind of section was expected.
    #[error("section {section} is not of kind {wanted}")]
    Kind {
        /// Which.
        section: String,
        /// What was wanted.
        wanted: &'static str,
    },
    /// It was written by a later program.
    #[error(
        "section {section} has version {version}, and this program knows those from 1 to {newest}: use a later one"
    )]
    Version {
        /// Which.
        section: String,
        /// Its version.
        version: u32,
        /// The newest known.
        newest: u32,
    },
    /// Its bytes are damaged.
    #[error("section {section}, version {version}, is damaged")]
    Fields {
        /// Which.
        section: String,
        /// Its version.
        version: u32,
        /// How.
        source: DecodeError,
    },
    /// Sections that nobody took.
    #[error("saved state has sections that this machine has no use for: {}", .0.join(", "))]
    Untaken(Vec<String>),
    /// It can be read and does not fit what it is loaded into.
    #[error("section {section} does not fit this machine: {why}")]
    Unfit {
        /// Which.
        section: String,
        /// In which respect.
        why: String,
    },
    /// What it is to be loaded into runs.
    #[error("{0} runs: state is saved and loaded while it stands still")]
    Running(String),
}

impl LoadError {
    /// `section` does not fit, for `why`.
    pub fn unfit(section: &Section, why: impl Into<String>) -> Self {
        Self::Unfit {
            section: section.title(),
            why: why.into(),
        }
    }
}
