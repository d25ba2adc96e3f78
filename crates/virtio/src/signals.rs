//! What a device tells its driver.

use crate::fault::RingError;

/// The way from a device to its driver. Callable from any thread; none of it blocks.
pub trait Signals: Send + Sync {
    /// Buffers of queue `index` were used. [`crate::VirtQueue::signal`] decides when this is worth it.
    fn queue_used(&self, index: u16);

    /// Configuration space changed.
    fn config_changed(&self);

    /// The device can not go on until the driver resets it: queue `index` made no sense, for `error`.
    fn needs_reset(&self, index: u16, error: &RingError);
}
