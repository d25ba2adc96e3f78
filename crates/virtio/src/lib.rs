//! virtio 1.2, modern only: split rings, the contract of devices, the PCI transport.
//!
//! ```text
//!   vCPU ── BAR ──▶ VirtioPci ── activate(Activation) ──▶ VirtioDevice ── its workers own the VirtQueues
//!                       ▲  deactivate() -> Vec<VirtQueue> ◀──┘                       │
//!                       └───────────────── Signals: used, config, needs reset ◀──────┘
//! ```
//!
//! A driver may do what it likes to its rings: chains are bounded and checked before a device sees them ([`Chain`]), and a
//! ring that makes no sense is given up with `NEEDS_RESET` ([`VirtQueue::fail`]). Deliberately absent: legacy and transitional
//! devices, INTx, packed rings, per-queue reset.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod chain;
mod contract;
mod fault;
#[cfg(any(test, feature = "test-utils"))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the driver of tests fails by panicking"
)]
#[allow(clippy::indexing_slicing, reason = "a test that indexes wrongly has to fail")]
pub mod mock;
mod queue;
mod scatter;
mod signals;
#[cfg(test)]
mod tests;
mod transport;

pub use chain::{Chain, Segment};
pub use contract::{ActivateError, Activation, DeviceKind, VirtioDevice};
pub use fault::RingError;
pub use queue::VirtQueue;
pub use scatter::Scatter;
pub use signals::Signals;
pub use transport::{TransportError, VirtioPci};

/// Feature bits every device has (virtio 1.2 §6); the transport offers them.
pub mod feature {
    /// Chains may live in tables of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say how far the other may go before it notifies.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy driver. Negotiation fails without it.
    pub const VERSION_1: u64 = 1 << 32;
}
