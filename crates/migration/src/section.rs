//! What is not RAM: named, versioned bytes that this crate carries and does not read.

use sha2::{Digest, Sha256};

/// Longest name of a section, bytes.
pub const SECTION_NAME_MAX: usize = 64;
/// Largest section, bytes: what a vCPU or a device has is thousands of times smaller.
pub const SECTION_BYTES_MAX: usize = 16 << 20;
/// Most sections of a machine.
pub const SECTIONS_MAX: usize = 4096;
/// Most bytes of all sections together.
pub const SECTIONS_BYTES_MAX: usize = 256 << 20;

/// The state of one vCPU or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Which part of the machine, unique in it: 1 to [`SECTION_NAME_MAX`] of `[a-z0-9._/-]`.
    pub name: String,
    /// Version of the format of `bytes`.
    pub version: u32,
    /// The state, at most [`SECTION_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl Section {
    /// Whether the protocol can carry this section.
    pub fn is_valid(&self) -> bool {
        let name = self.name.as_bytes();
        (1..=SECTION_NAME_MAX).contains(&name.len())
            && name
                .iter()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'/' | b'-'))
            && self.bytes.len() <= SECTION_BYTES_MAX
    }
}

/// Why sections can not be carried.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SectionError {
    /// A bad name, or too many bytes.
    #[error("section {0:?} has no proper name or more than {SECTION_BYTES_MAX} bytes")]
    Invalid(String),
    /// Two have the same name.
    #[error("two sections are named {0:?}")]
    Double(String),
    /// Too many, or too many bytes in all.
    #[error("more than {SECTIONS_MAX} sections or {SECTIONS_BYTES_MAX} bytes of them")]
    TooMuch,
}

/// The sections of a machine as they are sent or received, with a digest over all of them in order.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    list: Vec<Section>,
    bytes: usize,
    hash: Sha256,
}

impl Sections {
    pub(crate) fn push(&mut self, section: Section) -> Result<(), SectionError> {
        if !section.is_valid() {
            return Err(SectionError::Invalid(section.name));
        }
        if self.list.iter().any(|other| other.name == section.name) {
            return Err(SectionError::Double(section.name));
        }
        self.bytes += section.bytes.len();
        if self.list.len() >= SECTIONS_MAX || self.bytes > SECTIONS_BYTES_MAX {
            return Err(SectionError::TooMuch);
        }
        self.hash.update((section.name.len() as u64).to_le_bytes());
        self.hash.update(section.name.as_bytes());
        self.hash.update(section.version.to_le_bytes());
        self.hash.update((section.bytes.len() as u64).to_le_bytes());
        self.hash.update(&section.bytes);
        self.list.push(section);
        Ok(())
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.list.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    pub(crate) fn list(&self) -> &[Section] {
        &self.list
    }

    pub(crate) fn into_list(self) -> Vec<Section> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str) -> Section {
        Section {
            name: name.into(),
            version: 1,
            bytes: vec![1, 2],
        }
    }

    #[test]
    fn names_are_unique_and_plain() {
        let mut sections = Sections::default();
        sections.push(section("cpu/0")).unwrap();
        let one = sections.digest();
        assert_eq!(
            sections.push(section("cpu/0")),
            Err(SectionError::Double("cpu/0".into()))
        );
        assert!(matches!(sections.push(section("CPU")), Err(SectionError::Invalid(_))));
        assert!(matches!(sections.push(section("")), Err(SectionError::Invalid(_))));
        sections.push(section("disk0")).unwrap();
        assert_eq!(sections.count(), 2);
        assert_ne!(one, sections.digest());
    }
}
