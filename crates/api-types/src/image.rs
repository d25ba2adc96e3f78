//! Golden images: what is recorded of them, and how they come in.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::OperationId;
use utoipa::ToSchema;

use crate::image_import::ImageImport;

/// Where an image is in its life.
///
/// ```text
///   queued ──▶ importing ──▶ active ◀──▶ deactivated
///                │    ▲
///                ▼    │
///               failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// A record without data.
    Queued,
    /// Data comes in; nothing can be made from it yet.
    Importing,
    /// Complete and usable.
    Active,
    /// The import ended without an image; `failure` says why.
    Failed,
    /// Complete and kept from use; machines that were made from it go on.
    Deactivated,
    /// On its way out.
    Deleting,
}

/// A golden image: its record, and what is in the store of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Identity of the record: a UUID.
    pub id: String,
    /// Unique on the host; machines can name it.
    pub name: String,
    /// A line that tells what it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where it is in its life.
    pub state: ImageState,
    /// Why the last import failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ImageFailure>,
    /// Content address, `sha256:…`, once it has content. Several records may have the same; it is stored once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// References it was pulled by, newest first.
    pub references: Vec<String>,
    /// Stores that have it. Machines and volumes are made from what is in the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<String>,
    /// Stores it is being copied to, one after the other; those that are done are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub importing_to_stores: Vec<String>,
    /// Stores that did not get it by the last import or copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_import: Vec<String>,
    /// Format the disk came in, as `qcow2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_format: Option<String>,
    /// Size the guest sees, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size_bytes: Option<u64>,
    /// Space it takes in the store, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether it brings its own kernel.
    #[serde(default)]
    pub has_kernel: bool,
    /// Command line it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// What the disk is said to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<String>,
    /// What is said to be around the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_format: Option<String>,
    /// Processor it is made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Smallest disk of a machine made from it, GiB.
    #[serde(default)]
    pub min_disk_gib: u32,
    /// Smallest memory of a machine made from it, MiB.
    #[serde(default)]
    pub min_ram_mib: u32,
    /// `private`, `shared`, `community` or `public`. Recorded; whoever may use the API sees all images.
    pub visibility: String,
    /// Whether deletion is refused.
    #[serde(default)]
    pub protected: bool,
    /// Whether ordinary lists leave it out.
    #[serde(default)]
    pub hidden: bool,
    /// Whose it is, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Properties; the documented ones shape machines made from it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// The boot source it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<String>,
    /// Aliases that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The import under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// What it asks of machines and they can not give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ImageCondition>,
    /// When the record was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the record or its state last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Names of the machines made from it.
    pub used_by: Vec<String>,
    /// Names of the volumes that share blocks with it, or are being copied from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by_volumes: Vec<String>,
    /// Grows with each change of the record; also the entity tag.
    pub revision: u64,
}

/// Why an import ended without an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFailure {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Something an image asks of machines and they can not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageCondition {
    /// For programs, as `watchdog_not_available`.
    pub code: String,
    /// Whether no machine is made from it for this reason; otherwise machines are made without.
    pub refused: bool,
    /// The property that asks for it.
    pub property: String,
    /// For people.
    pub message: String,
}

/// All images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// Newest first.
    pub items: Vec<Image>,
}

/// A record to be made, with or without data; or, with `reference` alone, a container disk to be pulled, whose record is made when
/// it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    /// `registry/repository[:tag][@sha256:…]` of a container disk to be pulled. Beside nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// 1–63 of `[a-z0-9-]`, unique on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A line that tells what it is, up to 255 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What the disk is said to be. Default: what it is found to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<String>,
    /// What is said to be around the disk. Default: what is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_format: Option<String>,
    /// Processor it is made for. Default: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Smallest disk of a machine made from it, GiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_disk_gib: u64,
    /// Smallest memory of a machine made from it, MiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_ram_mib: u64,
    /// `private`, `shared`, `community` or `public`. Default: `shared`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// Deletion is refused while this is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// Ordinary lists leave it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Properties.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What to import into it at once. Without it, the record waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImageImport>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Fields of a record to change: a merge patch (RFC 7396). Absent fields stay, `null` gives a field its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagePatch {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Only before the image has data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<String>,
    /// Only before the image has data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_format: Option<String>,
    /// Processor it is made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_disk_gib: Option<u64>,
    /// MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ram_mib: Option<u64>,
    /// Who sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// Whether deletion is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// Whether ordinary lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<bool>,
    /// All tags it shall have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeSet<String>>,
    /// Keys to set, or with `null` to take away; others stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, Option<String>>>,
}

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageAccepted {
    /// Follow it under `/v1/operations/{id}`; its `result` is the image's digest. Absent where nothing is imported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// The record; absent for a pull, which makes its record when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Box<Image>>,
}
