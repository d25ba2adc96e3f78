//! Image records: made, found, shown, changed, removed.
//!
//! A record is what people wrote of an image and where it is in its life; its bytes are in the image store under their digest, once,
//! however many records have them. Every state is written down before what it announces is begun.
//!
//! - `adopt`: records for what the store has without one.
//! - `find`: what a name, an alias, a digest or a reference means.
//! - `describe`: as the API shows it.
//! - `edit`: made and changed by people.
//! - `import`: data comes in; `intake` is the only part that asks the store for it.
//! - `source`: what requests say of imports, checked and made into what the store is asked for.
//! - `receive`: data that clients send in one request; what they send piece by piece is in the module `upload`.
//! - `freeze`: disks of this host at one instant; `mirror` has machines that run copy theirs; `lineage` is what their images tell
//!   of where they are from.
//! - `place`: in which stores it is; `spread` brings it into further ones.
//! - `remove`: deletion, whole or not at all.
//! - `fsck`: whether records and stores agree.
//! - `verify`: whether bytes are still what they were.
//! - `publish`: out again, to a registry.
//! - `shape`: what an image asks of a machine made from it; `named_boot` finds the images that are its kernel and ramdisk.

mod adopt;
mod body;
mod describe;
mod edit;
mod find;
mod freeze;
mod frozen;
mod fsck;
mod import;
pub(crate) mod intake;
mod lineage;
mod mirror;
mod named_boot;
mod place;
mod publish;
mod receive;
mod remove;
mod shape;
pub(crate) mod source;
mod spread;
mod verify;

pub(crate) use adopt::{label, plain_record};
pub use describe::ImageFilter;
pub use edit::Begun;
pub(crate) use find::Usable;
pub(crate) use import::Ended;
pub(crate) use shape::shape;

use image_catalog::NotAllowed;

use crate::failure::Failure;

/// What every refused image is told first; the fields follow.
pub(crate) const REFUSED: &str = "the image can not be recorded as it is written";

/// An action that the image's state does not allow.
pub(crate) fn not_allowed(name: &str, error: &NotAllowed) -> Failure {
    Failure::new(api_types::ErrorCode::WrongState, format!("image {name}: {error}"))
}

/// No image is called so.
pub(crate) fn no_image(wanted: &str) -> Failure {
    Failure::new(
        api_types::ErrorCode::NotFound,
        format!("no image {wanted:?} in the store; pull it first, or look at the list of images"),
    )
}
