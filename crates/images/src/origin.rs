//! What a source was when an image came from it: to ask another day whether there is anything new.

use image_sources::{Comparison, Identity};
use serde::{Deserialize, Serialize};

use crate::ImageDigest;

/// What a source was at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Origin {
    /// A reference in a registry.
    Registry {
        /// Digest of the manifest, or index, that the reference led to.
        digest: ImageDigest,
    },
    /// An object on a web server or in an object store, or a local file.
    Object {
        /// What identified it.
        identity: Identity,
    },
    /// Bytes that a client sent: there is nothing to ask.
    Upload,
    /// An image of another store.
    Stored {
        /// Its name.
        digest: ImageDigest,
    },
}

impl Origin {
    /// Whether `now` is what this was; none where nobody can tell, because the server says too little or the kinds differ.
    pub fn is_same(&self, now: &Self) -> Option<bool> {
        match (self, now) {
            (Self::Registry { digest: before }, Self::Registry { digest: now })
            | (Self::Stored { digest: before }, Self::Stored { digest: now }) => Some(before == now),
            (Self::Object { identity: before }, Self::Object { identity: now }) => match before.compare(now) {
                Comparison::Same => Some(true),
                Comparison::Changed(_) | Comparison::Length { .. } => Some(false),
                Comparison::Unknown => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sameness_is_said_only_where_it_is_known() {
        let object = |etag: Option<&str>, length| Origin::Object {
            identity: Identity {
                length_bytes: Some(length),
                etag: etag.map(str::to_owned),
                modified: None,
            },
        };
        let tagged = object(Some("\"a\""), 1);
        assert_eq!(tagged.is_same(&object(Some("\"a\""), 1)), Some(true));
        assert_eq!(tagged.is_same(&object(Some("\"b\""), 1)), Some(false));
        assert_eq!(object(None, 1).is_same(&object(None, 2)), Some(false));
        assert_eq!(object(None, 1).is_same(&object(None, 1)), None);
        let registry = |text: &str| Origin::Registry {
            digest: ImageDigest::of(text.as_bytes()),
        };
        assert_eq!(registry("1").is_same(&registry("1")), Some(true));
        assert_eq!(registry("1").is_same(&registry("2")), Some(false));
        assert_eq!(registry("1").is_same(&tagged), None);
        assert_eq!(Origin::Upload.is_same(&Origin::Upload), None);
        let json = serde_json::to_string(&tagged).unwrap();
        assert_eq!(serde_json::from_str::<Origin>(&json).unwrap(), tagged);
    }
}
