//! The far end of the serial line.

use std::sync::Arc;

use chipset::{Serial, SerialPeer};

/// Takes what a guest prints, and sends what is typed. It outlives the serial ports that are connected to it: every reset of
/// the guest brings a new one.
pub trait Console: SerialPeer {
    /// From now on, input goes to `port`. Keep it weakly: the machine owns it. Called while the machine is built.
    fn connect(&self, port: &Arc<Serial>);
}
