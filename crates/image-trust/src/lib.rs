//! Whether the bytes of an image are right.

mod digests;
mod public_key;
mod source;
mod sums;

pub use digests::{BadPinned, DigestError, DigestSet, Digests, HashMethod, Pinned};
pub use public_key::{KEY_MAX_BYTES, KeyError, KeyKind, Padding, PublicKey};
pub use source::{BadSource, Pattern, Source};
pub use sums::{SUMS_MAX_BYTES, Sums, SumsEntry, SumsError, name_of_url};
pub mod openpgp;
pub mod cosign;
pub mod x509;
