//! What a virtio device is to its transport, and the other way round.

use std::sync::Arc;

use device::{Draining, Migration};
use guestmem::GuestMemory;

use crate::queue::VirtQueue;
use crate::signals::Signals;

/// Which device this is to a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceKind {
    /// Device type (virtio 1.2 §5).
    pub id: u16,
    /// PCI base class, sub-class, programming interface.
    pub class: [u8; 3],
}

impl DeviceKind {
    /// Network card; PCI class "Ethernet controller".
    pub const NET: Self = Self {
        id: 1,
        class: [0x02, 0x00, 0x00],
    };
    /// Block device; PCI class "other mass storage".
    pub const BLOCK: Self = Self {
        id: 2,
        class: [0x01, 0x80, 0x00],
    };
    /// Entropy source; PCI class "unclassified".
    pub const ENTROPY: Self = Self {
        id: 4,
        class: [0x00, 0xff, 0x00],
    };
}

/// What a device gets when its driver is ready (`DRIVER_OK`).
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The queues the driver enabled, in ascending order of [`VirtQueue::index`]. The device owns them until
    /// [`VirtioDevice::deactivate`].
    pub queues: Vec<VirtQueue>,
    /// What was negotiated.
    pub features: u64,
    /// The way to the driver.
    pub signals: Arc<dyn Signals>,
}

/// Why a device did not start to serve its queues. The host's fault, not the driver's.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device} can not serve its queues: {missing}")]
pub struct ActivateError {
    /// [`VirtioDevice::name`].
    pub device: String,
    /// What the host did not give, as "io_uring executor".
    pub missing: &'static str,
    /// What was said instead.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A virtio device behind a transport.
///
/// ```text
///             activate()                   pause() + drained
///   inactive ────────────▶ active ◀────────────────────────▶ paused
///      ▲                     │            resume()              │
///      └──── deactivate() ───┴──────────── deactivate() ────────┘
/// ```
///
/// All methods take `&self` and may be called from any thread, but the transport never calls `activate` and `deactivate` at
/// once. Nothing a driver does may panic or stall a device.
pub trait VirtioDevice: Send + Sync {
    /// A name that is unique in the machine and stable over its life, as `disk0`.
    fn name(&self) -> &str;

    /// What it is. Never changes.
    fn kind(&self) -> DeviceKind;

    /// Feature bits of the device itself; those of [`crate::feature`] are the transport's. Never change.
    fn features(&self) -> u64;

    /// Largest size of each queue: powers of two up to 32768. Never changes, neither in number nor in value.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from device configuration space; zeroes past its end. Any width, any offset, in any state.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to device configuration space; what is not writable stays as it is.
    fn config_write(&self, offset: u64, data: &[u8]);

    /// Begins to serve the queues. Called when inactive. After an error the device is inactive, and the queues are gone.
    fn activate(&self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops serving and gives the queues back, positions included. Blocks until every request in flight is done with
    /// guest memory. Afterwards no signal is sent. No queues when inactive.
    fn deactivate(&self) -> Vec<VirtQueue>;

    /// See [`device::Device::pause`]. Legal when inactive: it is then quiet already.
    fn pause(&self) -> Draining;

    /// See [`device::Device::resume`].
    fn resume(&self);

    /// What the transport does not know of it. Saved after the transport's own state; loaded after [`VirtioDevice::activate`],
    /// where the driver was ready, and while paused.
    fn migration(&self) -> Migration<'_>;
}
