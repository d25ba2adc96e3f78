//! The daemon's HTTP API, as calls.
//!
//! One [`Client`] per daemon, over its UNIX socket or over TLS; it may be cloned and used from several tasks. Nothing here retries: a call that changes
//! something was carried out exactly when it returns `Ok`.

mod boot_sources;
mod console;
mod disks;
mod error;
mod image_cache;
mod image_uploads;
mod images;
mod metadefs;
mod migrations;
mod operations;
mod remote;
mod snapshots;
mod transport;
mod vms;
mod volumes;

pub use console::{Console, ConsoleEnd, ConsoleInput, ConsoleOutput};
pub use error::{ClientError, RemoteError};
pub use images::ImageUpload;
pub use remote::{Remote, TlsFiles};
pub use transport::{Client, DEFAULT_SOCKET};
pub use volumes::Upload;
