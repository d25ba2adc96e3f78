//! Properties of an image: keys, their values, and the rules that hold between them.

mod check;
#[cfg(test)]
mod check_tests;
mod find;
mod key;
mod table;
mod value;

pub use check::{Properties, check_properties};
pub use find::{find_key, known_keys};
pub use key::{AppliesTo, KeySpec, Origin, PropertyUse};
pub use value::ValueRule;
pub(crate) use value::{cpu_list, number};

/// Most properties of an image. The reference states no limit and names that as a hole through which a database can be
/// filled; this is the default quota of the OpenStack image service (`image_property_quota`).
pub const PROPERTIES_MAX: usize = 128;
/// Longest key, bytes (the image service's column).
pub const KEY_MAX: usize = 255;
/// Longest value, bytes: room for a base64 signature of an 8192-bit key and for a kernel command line.
pub const VALUE_MAX: usize = 4096;
/// All keys and values of an image together, bytes.
pub const TOTAL_MAX: usize = 64 << 10;
/// Beginning of the keys that only the service writes.
pub const RESERVED_PREFIX: &str = "os_glance_";
