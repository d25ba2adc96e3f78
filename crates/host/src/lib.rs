//! The daemon without HTTP: it keeps the records of machines, images, operations and events, supervises the machine
//! processes, and finds everything again after a restart.
//!
//! | state | kept in | changed by |
//! |---|---|---|
//! | machines, images, boot sources, operations, events | the registry (SQLite) | one transaction per change |
//! | which process is which machine | the machine's task | that task alone |
//! | volume bytes | files beside the registry | jobs that were written down first |
//! | image bytes | the image store | pulls and removals |
//! | progress of pulls | memory | the pull |
//!
//! Nothing here knows of HTTP: a call comes back with a value or a [`Failure`], whose code says what kind of trouble it is.

mod agents;
mod begun;
mod boot_source;
mod cache_work;
mod catalogue;
mod config;
mod console;
mod context;
mod create;
mod edit;
mod failure;
mod flatten;
mod host;
mod image;
mod image_cache;
mod image_config;
mod left_moves;
mod limits;
mod machine;
mod metadef_edit;
mod metadefs;
mod metrics;
mod migration;
mod moves;
mod noting;
mod once;
mod opening;
mod operations;
mod part;
mod placing;
mod registry;
mod senders;
mod snapshot;
mod snapshot_files;
mod store_notes;
mod store_watch;
mod tracker;
mod upload;
mod volume;
mod volume_store;

pub use catalogue::{Begun as BegunImage, ImageFilter};
pub use client::{Remote, TlsFiles};
pub use config::{BootSourceConfig, HostConfig};
pub use console::{Console, LogTail};
pub use control::{DiskLatency, DiskReport, LATENCY_BOUNDS_US};
pub use failure::Failure;
pub use host::Host;
pub use image_catalog::Policy as MetadefPolicy;
pub use image_config::{CacheConfig, DISK_FORMATS, ImageConfig, ImportMethod, S3Config, StoreConfig, UploadConfig};
pub use image_sources::{AddressPolicy, BucketStyle, S3Key, S3Server};
pub use image_trust::policy::{TrustPolicy, TrustSection, read_trust_file};
pub use images::{CloneWay, StoreName};
pub use machine::Action;
pub use metadefs::MetadefConfig;
pub use metrics::{CacheFigures, Metrics, MoveCounts, StoreFigures, StoreRoom};
pub use moves::{ArrivalRecord, MigrationConfig, MigrationRecord, MoveDefaults};
pub use once::{FirstTime, Once};
pub use opening::OpenError;
pub use registry::{KeptAnswer, OperationRecord, RegistryError};
pub use sandbox::SeccompMode;
pub use volume::Piece;
