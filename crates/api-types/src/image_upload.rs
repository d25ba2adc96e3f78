//! Uploads of images that can be gone on with.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::OperationId;
use utoipa::ToSchema;

/// What is going to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadWish {
    /// How many bytes in all.
    pub length: u64,
    /// A digest that they must have, `sha256:…` or `sha512:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The store it shall be in. Default: the default store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// By which the sender finds the upload again, up to 255 bytes; not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// An upload under way: what has come of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upload {
    /// Its id.
    pub id: String,
    /// Id of the image it is for.
    pub image: String,
    /// How many bytes have come; where to go on.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
    /// What the sender called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// When it was begun.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it is dropped unless more comes.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// The import, once all has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// Uploads for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadList {
    /// Oldest first.
    pub items: Vec<Upload>,
}
