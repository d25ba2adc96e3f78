//! How a device asks for attention: a wired line, or a message.

/// A wired interrupt input of the machine (an IOAPIC pin), edge triggered.
pub trait IrqLine: Send + Sync {
    /// Delivers one edge. Never fails from the device's point of view: a machine that can not deliver counts and logs it.
    fn trigger(&self);
}

/// One message-signalled interrupt as the guest programmed it (PCI 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The interrupt messages of one PCI function, as the machine delivers them.
///
/// Owned by the function's MSI-X capability, which decides about masking and pending bits; the machine only keeps routes.
pub trait MsiRoutes: Send + Sync {
    /// From now on `vector` means `message`; `None` takes the route away (masked or disabled). Called from vCPU threads.
    fn route(&self, vector: u16, message: Option<MsiMessage>);

    /// Delivers `vector`. Called only while a message is routed; without one it is lost. Callable from any thread, must
    /// not block.
    fn deliver(&self, vector: u16);
}
