//! Putting header, extensions and backing file name into an image's first cluster.

use super::file::{long, short};
use crate::meta::extension::{self, Extensions};
use crate::meta::head::Head;
use crate::meta::header::BACKING_NAME_MAX;

/// Header, extensions and backing name need more than a cluster.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "header, extensions and backing file name need {needed} bytes, and a cluster has {cluster}: use larger clusters or a shorter name"
)]
pub struct HeadTooLong {
    /// What they need, bytes.
    pub needed: u64,
    /// Size of a cluster, bytes.
    pub cluster: u64,
}

/// The backing file's name can not be stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("backing file name {name:?} can not be stored: give 1 to {BACKING_NAME_MAX} bytes without control characters")]
pub struct BadName {
    /// The name.
    pub name: String,
}

/// Checks that a name can be stored as that of a backing file.
pub(crate) fn check_name(name: &str) -> Result<(), BadName> {
    let fits = !name.is_empty() && name.len() <= short(BACKING_NAME_MAX.into());
    match fits && !name.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(BadName { name: name.to_owned() }),
    }
}

/// The bytes of the first cluster, as far as they are used, with the name behind the extensions. Sets the header's fields that
/// say where the name is. The table of feature names is left out where there is no room for it.
pub(crate) fn layout(head: &mut Head) -> Result<Vec<u8>, HeadTooLong> {
    let cluster = head.header.layout().cluster_bytes();
    let name = head.backing_file.clone().unwrap_or_default();
    let needs = |extensions: &Extensions, head: &Head| {
        u64::from(head.header.header_len) + long(extensions.stored_bytes()) + long(name.len())
    };
    if needs(&head.extensions, head) > cluster {
        head.extensions.remove(extension::FEATURE_NAMES);
    }
    let needed = needs(&head.extensions, head);
    if needed > cluster {
        return Err(HeadTooLong { needed, cluster });
    }
    let at = u64::from(head.header.header_len) + long(head.extensions.stored_bytes());
    place_name(head, at);
    Ok(bytes(head, &name))
}

/// Says in the header that the name is at this offset; no name, no offset.
pub(crate) fn place_name(head: &mut Head, at: u64) {
    let len = head.backing_file.as_ref().map_or(0, String::len);
    head.header.backing_offset = if len == 0 { 0 } else { at };
    head.header.backing_len = u32::try_from(len).unwrap_or(BACKING_NAME_MAX);
}

fn bytes(head: &Head, name: &str) -> Vec<u8> {
    let mut bytes = head.header.encode();
    bytes.extend(head.extensions.to_bytes());
    bytes.extend(name.as_bytes());
    bytes
}
