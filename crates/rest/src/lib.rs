//! The HTTP API: extract, convert, call the host, convert back. The only crate that knows HTTP.
//!
//! Every answer that is no success is a problem (RFC 9457) with a stable code; `problem` is the one place that gives codes
//! their status. Nothing is kept here: two requests know of each other only through the host.

#![allow(unused_qualifications, reason = "utoipa's attribute writes paths in full")]

mod boot_sources;
mod console;
mod disks;
mod events;
mod extract;
mod health;
mod image_cache;
mod image_uploads;
mod images;
mod limits;
mod metadefs;
mod metrics;
mod migrations;
mod move_metrics;
mod once;
mod openapi;
mod operations;
mod page;
mod problem;
mod router;
mod serve;
mod shared;
mod snapshots;
mod store_metrics;
mod tls;
mod uploads;
mod vms;
mod volumes;

pub use axum::Router;
pub use openapi::openapi_json;
pub use router::router;
pub use serve::{Closing, Peer, serve};
pub use tls::{Tls, TlsError, TlsSettings, serve_tls};
