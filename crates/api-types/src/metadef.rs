//! Metadata definitions: what properties, tags and objects there are, for people and forms to choose from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A namespace of definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadef {
    /// Its name, up to 80 printable bytes without blanks.
    pub namespace: String,
    /// What people read.
    #[serde(default)]
    pub display_name: String,
    /// What it is about.
    #[serde(default)]
    pub description: String,
    /// Whether it can not be changed or removed over the API, as those of files.
    #[serde(default)]
    pub protected: bool,
    /// What it applies to.
    #[serde(default)]
    pub resource_types: Vec<MetadefAssociation>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadefAssociation {
    /// `image`, `volume` or `vm`.
    pub name: String,
    /// What is put in front of the names of its properties there.
    #[serde(default)]
    pub prefix: String,
}

/// What a property can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadefProperty {
    /// Its name.
    pub name: String,
    /// What people read.
    #[serde(default)]
    pub title: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
    /// `string`, `integer`, `number`, `boolean` or `array`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The values it takes; absent for any.
    #[serde(rename = "enum", default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// What holds where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<i64>,
    /// Shortest text, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u64>,
    /// Longest text, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
}

/// A named group of properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadefObject {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Its properties that must be set when any is.
    #[serde(default)]
    pub required: Vec<String>,
    /// Its properties.
    #[serde(default)]
    pub properties: Vec<MetadefProperty>,
}

/// A word that can be tagged on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadefTag {
    /// The word.
    pub name: String,
}

/// All namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetadefList {
    /// By name.
    pub items: Vec<Metadef>,
    /// What is wrong with files, each with its line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}
