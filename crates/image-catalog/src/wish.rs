//! What somebody writes of an image: a whole record, or fields of one to change.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Longest description and owner, bytes (the image service's columns for names and projects).
pub const TEXT_MAX: usize = 255;
/// Most tags of an image (the image service's `image_tag_quota`).
pub const TAGS_MAX: usize = 128;
/// Longest tag, bytes.
pub const TAG_MAX: usize = 255;
/// Largest `min_disk_gib` and `min_ram_mib`: what the image service's 32-bit columns hold.
pub const MINIMUM_MAX: u32 = i32::MAX as u32;

/// An image record as somebody wrote it. Unknown fields are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageWish {
    /// 1–63 of `[a-z0-9-]`, unique on the host; who stores the record sees to the latter.
    pub name: String,
    /// A line that tells what it is, up to 255 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What the disk is said to be. Default: what it is found to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<String>,
    /// What is said to be around the disk. Default: what is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_format: Option<String>,
    /// Processor it is made for. Default: the property of that name, else whatever the host is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Smallest disk a machine made from it may have, GiB. 0: no minimum.
    #[serde(default)]
    pub min_disk_gib: u64,
    /// Smallest memory a machine made from it may have, MiB. 0: no minimum.
    #[serde(default)]
    pub min_ram_mib: u64,
    /// `private`, `shared`, `community` or `public`. Default: `shared` with nobody, as the image service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// It can not be deleted while this is set.
    #[serde(default)]
    pub protected: bool,
    /// It is left out of lists that do not ask for hidden ones; it can be found by name and used.
    #[serde(default)]
    pub hidden: bool,
    /// Whose it is, up to 255 bytes; who stores the record fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Keys and values; see [`crate::known_keys`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// What should change in a record: the fields that can be edited, and no others. `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEdit {
    /// See [`ImageWish`]; the same for every field.
    pub name: Option<String>,
    /// Empty takes it away.
    pub description: Option<String>,
    /// Only before the image has data: [`crate::ImageAction::EditFormat`].
    pub disk_format: Option<String>,
    /// Only before the image has data: [`crate::ImageAction::EditFormat`].
    pub container_format: Option<String>,
    /// Processor it is made for.
    pub architecture: Option<String>,
    /// GiB.
    pub min_disk_gib: Option<u64>,
    /// MiB.
    pub min_ram_mib: Option<u64>,
    /// Who sees it.
    pub visibility: Option<String>,
    /// Whether it can be deleted.
    pub protected: Option<bool>,
    /// Whether it is in ordinary lists.
    pub hidden: Option<bool>,
    /// All tags it shall have.
    pub tags: Option<BTreeSet<String>>,
    /// Keys to set, or with `null` to take away; others stay.
    #[serde(default)]
    pub properties: BTreeMap<String, Option<String>>,
}

impl ImageEdit {
    /// Whether it touches what the image is said to be made of.
    pub const fn changes_format(&self) -> bool {
        self.disk_format.is_some() || self.container_format.is_some()
    }
}
