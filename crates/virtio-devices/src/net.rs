//! Network card (virtio 1.2 §5.1) on the queues of a tap.
//!
//! One worker per queue pair, which receives and sends; the first also serves the control queue. Frames go between the tap
//! and guest RAM in the system call that moves them, without another copy; whatever the guest leaves undone in them
//! (checksums, segmentation) is told by the header in front, and the tap takes that header as it is.

mod config;
mod device;
mod receive;
mod request;
#[cfg(test)]
mod tests;
mod transmit;
mod wire;
mod worker;

pub use config::NetOptions;
pub use device::Net;
pub use wire::{TapWire, Wire};
pub use worker::NetCounters;
