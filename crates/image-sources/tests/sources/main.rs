//! Sources against real servers (nginx, S3) and against one that misbehaves, all on loopback.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says on stderr what it had to skip"
)]

mod certificates;
mod cutter;
mod faults;
mod faulty;
mod fetched;
mod nginx;
mod redirects;
mod s3;
mod web;
