//! Metadata definitions: a catalogue of what properties, tags and objects exist, for people and forms to choose from.
//!
//! A *namespace* holds *properties* (a type, allowed values, a default), *objects* (named groups of properties) and *tags*, and
//! says to which *resource types* it applies; an association may put a prefix in front of the names of its properties.
//! Namespaces come from files (`*.toml` in `/usr/share/karat/metadefs.d`, then `/etc/karat/metadefs.d`) and, where the policy
//! lets them, from users. Nobody owns one, so that nothing secret belongs into names; see [`Policy`].

mod catalogue;
mod policy;
mod property;
mod read;
#[cfg(test)]
mod tests;

pub use catalogue::{Catalogue, MetadefError, Verdict};
pub use policy::{MetadefOperation, Policy, Role};
pub use property::{MetadefProperty, MetadefType};
pub use read::FileProblem;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::fault::{FaultCode, Faults};
use property::check_text;

/// Most namespaces of a host. The reference names the lack of limits as a way to fill the database; these are Karat's own.
pub const NAMESPACES_MAX: usize = 64;
/// Most properties of a namespace, those of its objects included.
pub const DEFINITIONS_MAX: usize = 256;
/// Most objects, tags or associations of a namespace, each.
pub const MEMBERS_MAX: usize = 64;
/// Longest name of anything in the catalogue, bytes.
pub const METADEF_NAME_MAX: usize = 80;
/// Longest title or description, bytes.
pub const METADEF_TEXT_MAX: usize = 500;

/// A namespace, as it is written in a file or sent by a user. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name, up to 80 printable bytes without blanks, unique.
    pub namespace: String,
    /// What people read.
    #[serde(default)]
    pub display_name: String,
    /// What it is about.
    #[serde(default)]
    pub description: String,
    /// It can not be changed or removed over the API. Namespaces from files always are.
    #[serde(default)]
    pub protected: bool,
    /// What it applies to.
    #[serde(default)]
    pub resource_types: Vec<Association>,
    /// Its properties.
    #[serde(default)]
    pub properties: Vec<MetadefProperty>,
    /// Groups of properties.
    #[serde(default)]
    pub objects: Vec<MetadefObject>,
    /// Words that can be tagged on.
    #[serde(default)]
    pub tags: Vec<MetadefTag>,
}

/// That a namespace applies to a kind of resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Association {
    /// `image`, `volume` or `vm`.
    pub name: String,
    /// What is put in front of the names of its properties on such a resource.
    #[serde(default)]
    pub prefix: String,
}

/// A named group of properties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadefObject {
    /// Its name, unique in the namespace.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Names of its properties that must be set when any is.
    #[serde(default)]
    pub required: Vec<String>,
    /// Its properties.
    #[serde(default)]
    pub properties: Vec<MetadefProperty>,
}

/// A word that can be tagged on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadefTag {
    /// The word.
    pub name: String,
}

/// Kinds of resource a namespace can apply to.
pub const RESOURCE_TYPES: [&str; 3] = ["image", "volume", "vm"];

impl Namespace {
    /// Everything that is wrong with it.
    pub fn check(&self) -> Result<(), Faults> {
        let mut faults = Faults::new();
        check_name("namespace", &self.namespace, &mut faults);
        check_text("display_name", &self.display_name, &mut faults);
        check_text("description", &self.description, &mut faults);
        self.check_amounts(&mut faults);
        for (index, association) in self.resource_types.iter().enumerate() {
            let field = format!("resource_types[{index}]");
            if !RESOURCE_TYPES.contains(&association.name.as_str()) {
                let message = format!("{:?}; take one of {}", association.name, RESOURCE_TYPES.join(", "));
                faults.add(FaultCode::TextInvalid, format!("{field}.name"), message);
            }
            if !association.prefix.is_empty() {
                check_name(&format!("{field}.prefix"), &association.prefix, &mut faults);
            }
        }
        check_distinct(
            "resource_types",
            self.resource_types.iter().map(|a| a.name.as_str()),
            &mut faults,
        );
        check_properties("properties", &self.properties, &mut faults);
        check_distinct("objects", self.objects.iter().map(|o| o.name.as_str()), &mut faults);
        for (index, object) in self.objects.iter().enumerate() {
            object.check(&format!("objects[{index}]"), &mut faults);
        }
        check_distinct("tags", self.tags.iter().map(|tag| tag.name.as_str()), &mut faults);
        for (index, tag) in self.tags.iter().enumerate() {
            check_name(&format!("tags[{index}].name"), &tag.name, &mut faults);
        }
        faults.into_result(())
    }

    fn check_amounts(&self, faults: &mut Faults) {
        let of_objects: usize = self.objects.iter().map(|object| object.properties.len()).sum();
        for (field, count, most) in [
            ("properties", self.properties.len() + of_objects, DEFINITIONS_MAX),
            ("objects", self.objects.len(), MEMBERS_MAX),
            ("tags", self.tags.len(), MEMBERS_MAX),
            ("resource_types", self.resource_types.len(), MEMBERS_MAX),
        ] {
            if count > most {
                let message = format!("{count} of them; a namespace has at most {most}");
                faults.add(FaultCode::NumberOutOfRange, field, message);
            }
        }
    }

    /// Its properties and those of its objects.
    pub fn all_properties(&self) -> impl Iterator<Item = &MetadefProperty> {
        let of_objects = self.objects.iter().flat_map(|object| &object.properties);
        self.properties.iter().chain(of_objects)
    }
}

impl MetadefObject {
    fn check(&self, field: &str, faults: &mut Faults) {
        check_name(&format!("{field}.name"), &self.name, faults);
        check_text(&format!("{field}.description"), &self.description, faults);
        check_properties(&format!("{field}.properties"), &self.properties, faults);
        for required in &self.required {
            if !self.properties.iter().any(|property| property.name == *required) {
                let message = format!("{required:?} is no property of the object");
                faults.add(FaultCode::PropertiesConflict, format!("{field}.required"), message);
            }
        }
    }
}

fn check_properties(field: &str, properties: &[MetadefProperty], faults: &mut Faults) {
    check_distinct(field, properties.iter().map(|property| property.name.as_str()), faults);
    for (index, property) in properties.iter().enumerate() {
        property.check(&format!("{field}[{index}]"), faults);
    }
}

/// Names are of printable ASCII without blanks.
pub(crate) fn check_name(field: &str, name: &str, faults: &mut Faults) {
    let fits = (1..=METADEF_NAME_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    if !fits {
        let message = format!("take 1 to {METADEF_NAME_MAX} printable ASCII characters without blanks");
        faults.add(FaultCode::NameInvalid, field, message);
    }
}

fn check_distinct<'a>(field: &str, names: impl Iterator<Item = &'a str>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            let message = format!("{name:?} is there twice");
            faults.add(FaultCode::PropertiesConflict, format!("{field}[{index}].name"), message);
        }
    }
}
