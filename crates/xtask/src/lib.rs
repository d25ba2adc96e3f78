//! The project's own commands: what `cargo xtask` runs.

pub mod cache;
pub mod lab;
pub mod packages;
pub mod tools;
