//! One section.

/// The state of one thing, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    kind: String,
    name: String,
    version: u32,
    body: Vec<u8>,
}

impl Section {
    /// Of bytes that were saved before. Whether they are what they say is found out by [`crate::SaveState::load`].
    pub fn new(kind: &str, name: &str, version: u32, body: Vec<u8>) -> Self {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        Self {
            kind,
            name,
            version,
            body,
        }
    }

    /// What it is the state of.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Whose state it is; empty where there is only one of the kind.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Version of its kind.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Its fields.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// For people: kind and name.
    pub fn title(&self) -> String {
        title(&self.kind, &self.name)
    }
}

/// For people.
pub(crate) fn title(kind: &str, name: &str) -> String {
    if name.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind} of {name}")
    }
}
