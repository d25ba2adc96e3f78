//! Golden images.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::OperationId;
use utoipa::ToSchema;

/// A golden image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Content address, `sha256:…`.
    pub digest: String,
    /// References it was pulled by, newest first.
    pub references: Vec<String>,
    /// Format the disk came in: `raw` or `qcow2`.
    pub source_format: String,
    /// Size the guest sees, bytes.
    pub virtual_size_bytes: u64,
    /// Space it takes in the store, bytes.
    pub size_bytes: u64,
    /// Whether it brings its own kernel.
    pub has_kernel: bool,
    /// Command line it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// When it was sealed.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Names of the machines made from it.
    pub used_by: Vec<String>,
    /// Names of the volumes that share blocks with it, or are being copied from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by_volumes: Vec<String>,
}

/// All images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// Newest first.
    pub items: Vec<Image>,
}

/// What to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePull {
    /// `registry/repository[:tag][@sha256:…]` of a container disk.
    pub reference: String,
}

/// The pull that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagePulled {
    /// Follow it under `/v1/operations/{id}`; its `result` is the image's digest.
    pub operation: OperationId,
}
