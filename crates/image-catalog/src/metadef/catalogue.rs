//! The catalogue as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::property::MetadefProperty;
use super::{NAMESPACES_MAX, Namespace};
use crate::fault::Faults;

/// All namespaces of a host, sorted by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    pub(super) namespaces: BTreeMap<String, Namespace>,
    /// Names of those that come from files.
    pub(super) from_files: BTreeSet<String>,
}

/// Why the catalogue can not be changed.
#[derive(Debug, thiserror::Error)]
pub enum MetadefError {
    /// The definition is wrong in itself.
    #[error("namespace {name:?} can not be taken")]
    Invalid {
        /// The namespace.
        name: String,
        /// All that is wrong with it.
        #[source]
        faults: Faults,
    },
    /// There is one of that name.
    #[error("namespace {0:?} exists: change that one, or take another name")]
    Exists(String),
    /// There is none of that name.
    #[error("there is no namespace {0:?}: list them to see what there is")]
    Unknown(String),
    /// It is protected, or comes from a file.
    #[error("namespace {0:?} is protected: change the file it comes from, or take the protection away first")]
    Protected(String),
    /// There are as many as there can be.
    #[error("there are {NAMESPACES_MAX} namespaces, and no room for more: remove one first")]
    Full,
}

impl MetadefError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "metadef_invalid",
            Self::Exists(_) => "metadef_exists",
            Self::Unknown(_) => "metadef_unknown",
            Self::Protected(_) => "metadef_protected",
            Self::Full => "metadef_limit",
        }
    }
}

/// What the catalogue says of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No namespace that applies defines the key.
    Undefined,
    /// Every definition takes the value.
    Fits,
    /// A definition does not take it.
    Wrong {
        /// Namespace with that definition.
        namespace: String,
        /// What it takes.
        message: String,
    },
}

impl Catalogue {
    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// Namespaces that apply to a kind of resource, by name.
    pub fn for_resource<'a>(&'a self, resource_type: &'a str) -> impl Iterator<Item = &'a Namespace> {
        let applies = move |space: &&Namespace| space.resource_types.iter().any(|a| a.name == resource_type);
        self.namespaces.values().filter(applies)
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// Definitions of `key` on a kind of resource, each with its namespace; prefixes are taken off.
    pub fn definitions<'a>(
        &'a self,
        resource_type: &'a str,
        key: &'a str,
    ) -> impl Iterator<Item = (&'a Namespace, &'a MetadefProperty)> {
        self.namespaces.values().flat_map(move |space| {
            let applying = space.resource_types.iter().filter(move |a| a.name == resource_type);
            applying.flat_map(move |association| {
                let name = key.strip_prefix(association.prefix.as_str());
                let found = space.all_properties().filter(move |p| Some(p.name.as_str()) == name);
                found.map(move |property| (space, property))
            })
        })
    }

    /// Whether `value` is one that `key` takes on a kind of resource.
    pub fn value(&self, resource_type: &str, key: &str, value: &str) -> Verdict {
        let mut verdict = Verdict::Undefined;
        for (space, property) in self.definitions(resource_type, key) {
            match property.value(value) {
                Ok(()) => verdict = Verdict::Fits,
                Err(message) => {
                    let namespace = space.namespace.clone();
                    return Verdict::Wrong { namespace, message };
                }
            }
        }
        verdict
    }

    /// Takes a new namespace in.
    pub fn add(&mut self, space: Namespace) -> Result<(), MetadefError> {
        if self.namespaces.contains_key(&space.namespace) {
            return Err(MetadefError::Exists(space.namespace));
        }
        if self.namespaces.len() >= NAMESPACES_MAX {
            return Err(MetadefError::Full);
        }
        self.store(space)
    }

    /// Puts a namespace in the place of the one of the same name. To change a property, an object or a tag, change a copy.
    /// The protection of what it replaces must have been taken off, unless that is the only change.
    pub fn replace(&mut self, space: Namespace) -> Result<(), MetadefError> {
        let Some(old) = self.namespaces.get(&space.namespace) else {
            return Err(MetadefError::Unknown(space.namespace));
        };
        let unprotects = Namespace {
            protected: false,
            ..old.clone()
        };
        let fixed = self.from_files.contains(&space.namespace);
        if fixed || (old.protected && space != unprotects) {
            return Err(MetadefError::Protected(space.namespace));
        }
        self.store(space)
    }

    /// Takes a namespace away.
    pub fn remove(&mut self, name: &str) -> Result<Namespace, MetadefError> {
        match self.namespaces.get(name) {
            None => Err(MetadefError::Unknown(name.to_owned())),
            Some(space) if space.protected || self.from_files.contains(name) => {
                Err(MetadefError::Protected(name.to_owned()))
            }
            Some(_) => self
                .namespaces
                .remove(name)
                .ok_or_else(|| MetadefError::Unknown(name.to_owned())),
        }
    }

    fn store(&mut self, space: Namespace) -> Result<(), MetadefError> {
        let name = space.namespace.clone();
        match space.check() {
            Ok(()) => {
                self.namespaces.insert(name, space);
                Ok(())
            }
            Err(faults) => Err(MetadefError::Invalid { name, faults }),
        }
    }
}
