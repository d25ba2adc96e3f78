//! The real daemon in a directory of its own, asked over its socket, with machines that run no guest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also outside of #[test] functions"
)]

mod alerts;
mod amazon;
mod boot_source_rules;
mod boot_sources;
mod cache;
mod copies;
mod damaged;
mod flatten;
mod harness;
mod image_rules;
mod image_uploads;
mod images;
mod intake;
mod keys;
mod launcher;
mod machines;
mod metadefs;
mod moves;
mod moves_cut;
mod moves_real;
mod pair;
mod publish;
mod real_registry;
mod records;
mod registry;
mod requests;
mod restarts;
mod roots;
mod saved;
mod signed;
mod snapshots;
mod store_faults;
mod stores;
mod tls;
mod volumes;
mod web;
