//! Saved state: what of a machine outlives its process, and the program that wrote it.
//!
//! ```text
//!   device ──▶ its own state struct ── SaveState::save ──▶ Section ─┐
//!                                                                   ├─▶ SavedState ──▶ bytes (a file, a stream)
//!   vCPU   ──▶ its own state struct ── SaveState::save ──▶ Section ─┘
//!
//!   bytes ──▶ SavedState::parse ──▶ Sections::take by kind and name ── SaveState::load ──▶ state struct ──▶ device
//!                                   Sections::finish: what nobody took is an error
//! ```
//!
//! Runtime structs are never serialised. A section is written from a struct made for it by [`section!`], whose fields are its
//! wire format: one that is there stays as it is, in place and type. What changes gets a new struct with the next version and
//! a step that upgrades the one before; loading an older section goes through the steps one by one. A newer one is refused.
//!
//! # The file
//!
//! All integers are little-endian.
//!
//! | bytes | content                                                                |
//! |-------|------------------------------------------------------------------------|
//! | 8     | magic: `KARAT` `SAV` in ASCII                                          |
//! | 4     | version of this table: 1                                               |
//! | 4     | number of sections, at most 65536                                      |
//! | …     | the sections, in the order in which they were added                    |
//! | 4     | CRC-32 (IEEE 802.3) of all bytes before                                |
//!
//! A section:
//!
//! | bytes | content                                                                |
//! |-------|------------------------------------------------------------------------|
//! | 1 + n | kind: length 1–64, then that many of `a-z`, `0-9`, `-`                 |
//! | 1 + n | name: length 0–64, then as above; whose state it is, as `disk0`        |
//! | 4     | version of the kind, from 1 on                                         |
//! | 4 + n | length, then the fields                                                |
//!
//! A kind and a name together occur once. Fields:
//!
//! | type                         | bytes                                           |
//! |------------------------------|-------------------------------------------------|
//! | `u8` … `u64`, `i64`          | their own size                                  |
//! | `bool`                       | one, 0 or 1                                     |
//! | `[T; N]`                     | the elements                                    |
//! | `Vec<T>`, [`Bytes`], `String`| a count in four, then the elements; strings are UTF-8 |
//! | `Option<T>`                  | one, 0 or 1, then the value where it is 1       |
//! | a [`record!`]                | its fields in their order                       |
//!
//! There is one encoding of each value, so that what was loaded and is saved again is the same bytes. Decoding is total:
//! whatever the bytes are, it ends in a value or an error, and takes no more memory than a small multiple of their number.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod container;
mod decode;
mod field;
mod schema;
mod section;
#[cfg(test)]
mod tests;

pub use container::{Problem, SECTIONS_MAX, SavedState, Sections};
pub use decode::{DecodeError, Decoder};
pub use field::{Bytes, Field};
pub use schema::{LoadError, Never, SaveState, Schema};
pub use section::Section;
