//! The project's own commands: what `cargo xtask` runs.

pub mod cache;
pub mod demo;
pub mod figures;
pub mod golden;
pub mod guests;
pub mod kernel;
pub mod lab;
pub mod openapi;
pub mod packages;
pub mod probe;
pub mod registry;
pub mod suite;
pub mod tally;
pub mod tidy;
pub mod tools;
pub mod watch;
