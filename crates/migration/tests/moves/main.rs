//! Moves a fake machine over streams in memory: whatever happens to the streams, one machine runs in the end.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod attempt;
mod cuts;
mod network;
mod strangers;
mod trouble;
mod world;
