//! Entropy source (virtio 1.2 §5.4), fed by the host's getrandom(2) at a bounded rate.

mod device;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Rng, RngOptions};
pub use worker::RngCounters;
