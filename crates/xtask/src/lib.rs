//! The project's own commands: what `cargo xtask` runs.

pub mod cache;
pub mod golden;
pub mod kernel;
pub mod lab;
pub mod packages;
pub mod registry;
pub mod tidy;
pub mod tools;
