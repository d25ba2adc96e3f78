//! Copies of images of slow stores.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Copies in the default store of images that are in slow stores. Machines and volumes are made from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageCache {
    /// Most space that copies may take, bytes.
    pub max_bytes: u64,
    /// Space that they take, bytes. More than they may only while machines or volumes use them.
    pub used_bytes: u64,
    /// Names of the stores whose images are cached.
    pub stores: Vec<String>,
    /// What was not used for longest comes first, and goes first.
    pub items: Vec<ImageCacheEntry>,
}

/// A copy, or one that is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageCacheEntry {
    /// Digest of the bytes.
    pub digest: String,
    /// Names of the images that have these bytes.
    pub images: Vec<String>,
    /// How far it is.
    pub state: ImageCacheState,
    /// Space that it takes, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub queued_at: Timestamp,
    /// When something was last made from it, or it was made itself.
    #[schema(value_type = String, format = DateTime)]
    pub used_at: Timestamp,
    /// How often it was there when it was needed.
    pub hits: u64,
    /// Machines and volumes that were made from it; it stays as long as there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<String>,
    /// Why it could not be made so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageCacheState {
    /// It is made when the queue is looked at next.
    Queued,
    /// It is being made.
    Fetching,
    /// It is there.
    Cached,
}
