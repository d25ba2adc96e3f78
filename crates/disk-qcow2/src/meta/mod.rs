//! Structures of the format: parsing and writing, without I/O. Total: any bytes give a value or an error, never a panic.

pub mod bitmap;
pub mod entry;
pub mod extension;
pub mod head;
pub mod header;
pub mod layout;
pub mod refcount;
pub mod snapshot;
