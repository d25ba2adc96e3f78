//! Sources against real servers (nginx, S3) and against one that misbehaves, all on loopback.

mod certificates;
mod cutter;
mod faults;
mod faulty;
mod fetched;
mod nginx;
mod redirects;
mod s3;
mod web;
