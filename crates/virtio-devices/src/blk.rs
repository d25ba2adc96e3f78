//! Block device (virtio 1.2 §5.2) on any [`disk::Disk`].
//!
//! One worker per queue, each with its own executor and its own queue of the disk. Requests of a queue are in flight side by
//! side and end in any order; data goes between guest RAM and the disk without a copy. Counters and latencies of a device are
//! read at any time: [`Blk::figures`].

mod config;
mod device;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub use config::BlkOptions;
pub use device::Blk;
