//! Sections, and the file that holds them.

use std::collections::BTreeMap;

use crate::decode::{DecodeError, Decoder};
use crate::schema::{LoadError, SaveState};
use crate::section::{Section, title};

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"KARATSAV";
/// Version of the file's own layout.
const VERSION: u32 = 1;
/// Most sections of a file. Picked: the largest machine there can be has a few hundred.
pub const SECTIONS_MAX: usize = 65536;
/// Most bytes of a kind or a name.
const WORD_MAX: usize = 64;
/// Bytes of the checksum.
const SUM: usize = 4;

fn encode(section: &Section, out: &mut Vec<u8>) {
    for word in [section.kind(), section.name()] {
        let length = u8::try_from(word.len()).unwrap_or(u8::MAX);
        out.push(length);
        out.extend(word.as_bytes());
    }
    let body = section.body();
    out.extend(section.version().to_le_bytes());
    out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(body);
}

fn decode(from: &mut Decoder<'_>) -> Result<Section, Problem> {
    let kind = word(from, 1)?;
    let name = word(from, 0)?;
    let version = from.field()?;
    let length = from.count(1)?;
    let body = from.bytes(length)?.to_vec();
    Ok(Section::new(&kind, &name, version, body))
}

/// Whether `word` can be a kind or a name.
fn is_word(word: &[u8]) -> bool {
    let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    word.len() <= WORD_MAX && word.iter().all(allowed)
}

fn word(from: &mut Decoder<'_>, least: usize) -> Result<String, Problem> {
    let length = usize::from(from.field::<u8>()?);
    let bytes = from.bytes(length)?;
    let text = str::from_utf8(bytes).ok().filter(|_| is_word(bytes) && length >= least);
    text.map(ToOwned::to_owned).ok_or(Problem::BadName {
        offset: from.offset() - length,
    })
}

/// Why bytes are no saved state, or sections can not be put into one.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Problem {
    /// They begin like something else.
    #[error("this is no saved state of a machine: it does not begin like one")]
    NotSavedState,
    /// They were written by a later program.
    #[error("saved state has layout version {0}, and this program knows version {VERSION}: use a later one")]
    Version(u32),
    /// Bytes were changed or lost.
    #[error("saved state is damaged: its checksum is {found:#010x}, and should be {expected:#010x}")]
    Checksum {
        /// Of the bytes.
        found: u32,
        /// At their end.
        expected: u32,
    },
    /// More sections than any machine has.
    #[error("saved state names {0} sections; at most {SECTIONS_MAX} are taken")]
    TooMany(usize),
    /// A kind or name can not be.
    #[error("saved state is damaged: the kind or name at byte {offset} is not 1 to {WORD_MAX} of a-z, 0-9 and -")]
    BadName {
        /// Where.
        offset: usize,
    },
    /// A section occurs twice.
    #[error("saved state has section {0} twice")]
    Doubled(String),
    /// The structure ends early, or late.
    #[error("saved state is damaged")]
    Structure(#[from] DecodeError),
}

/// All sections of a machine, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedState {
    sections: Vec<Section>,
}

impl SavedState {
    /// Without sections.
    pub const fn new() -> Self {
        Self { sections: Vec::new() }
    }

    /// Appends one.
    ///
    /// # Errors
    /// There is one of its kind and name already, or these can not be written.
    pub fn add(&mut self, section: Section) -> Result<(), Problem> {
        let same = |other: &Section| other.kind() == section.kind() && other.name() == section.name();
        if self.sections.iter().any(same) {
            return Err(Problem::Doubled(section.title()));
        }
        if section.kind().is_empty() || !is_word(section.kind().as_bytes()) || !is_word(section.name().as_bytes()) {
            return Err(Problem::BadName { offset: 0 });
        }
        if self.sections.len() >= SECTIONS_MAX {
            return Err(Problem::TooMany(self.sections.len() + 1));
        }
        self.sections.push(section);
        Ok(())
    }

    /// In their order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// As a file holds it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::try_from(self.sections.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.sections.iter().for_each(|section| encode(section, &mut out));
        Self::seal(&out)
    }

    /// `bytes` and the checksum that belongs behind them.
    pub fn seal(bytes: &[u8]) -> Vec<u8> {
        [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat()
    }

    /// What [`SavedState::encode`] wrote. The checksum is looked at before anything else is believed.
    ///
    /// # Errors
    /// The bytes are anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Problem::NotSavedState);
        }
        let short = || Problem::Structure(DecodeError::Truncated { missing: SUM });
        let (covered, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(short)?;
        let mut from = Decoder::new(covered);
        let _magic: [u8; 8] = from.array()?;
        let version = from.field()?;
        if version != VERSION {
            return Err(Problem::Version(version));
        }
        let (found, expected) = (crc32fast::hash(covered), u32::from_le_bytes(*sum));
        if found != expected {
            return Err(Problem::Checksum { found, expected });
        }
        let count = usize::try_from(from.field::<u32>()?).unwrap_or(usize::MAX);
        if count > SECTIONS_MAX {
            return Err(Problem::TooMany(count));
        }
        let mut seen = BTreeMap::new();
        let mut sections = Vec::new();
        for _ in 0..count {
            let section = decode(&mut from)?;
            if seen
                .insert((section.kind().to_owned(), section.name().to_owned()), ())
                .is_some()
            {
                return Err(Problem::Doubled(section.title()));
            }
            sections.push(section);
        }
        from.finish()?;
        Ok(Self { sections })
    }

    /// To be taken from.
    pub fn into_sections(self) -> Sections {
        let keyed = |section: Section| ((section.kind().to_owned(), section.name().to_owned()), section);
        Sections(self.sections.into_iter().map(keyed).collect())
    }
}

/// Sections that are waiting to be loaded. Each is taken once; [`Sections::finish`] sees to it that none stays.
#[derive(Debug)]
#[must_use = "sections that nobody takes are an error, which `finish` finds"]
pub struct Sections(BTreeMap<(String, String), Section>);

impl Sections {
    /// Takes and loads the state of `name`, with the section it came from, by which errors are told.
    ///
    /// # Errors
    /// It is not there, or can not be loaded.
    pub fn take<S: SaveState>(&mut self, name: &str) -> Result<(S, Section), LoadError> {
        let key = (S::KIND.to_owned(), name.to_owned());
        let section = self.0.remove(&key);
        let section = section.ok_or_else(|| LoadError::Missing(title(S::KIND, name)))?;
        S::load(&section).map(|state| (state, section))
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// Sections are left, which are named.
    pub fn finish(self) -> Result<(), LoadError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(LoadError::Untaken(self.0.values().map(Section::title).collect()))
    }
}
