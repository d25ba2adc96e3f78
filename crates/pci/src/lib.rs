//! PCI for one segment with one bus: configuration space, BARs, MSI-X.
//!
//! ```text
//!   vCPU ── Ecam / ConfigPorts ──▶ Root ──▶ Function ── BarSpace::map ──▶ the machine's bus
//!                                              │                              │
//!                                           Msix ◀── table, pending ── Regions (one BAR)
//!                                              └── MsiRoutes ──▶ the machine's interrupt routes
//! ```
//!
//! A device model builds an [`Endpoint`] and never learns where it was plugged. Addresses are the [`Root`]'s matter: it hands
//! out BAR addresses from the machine's windows, and follows the guest when it moves them. Deliberately absent: bridges,
//! I/O space, INTx, multi-function slots, extended capabilities.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod access;
mod address;
mod endpoint;
mod function;
mod msix;
mod regions;
mod registers;
mod root;
#[cfg(test)]
mod tests;

pub use access::{CONFIG_PORTS_BASE, CONFIG_PORTS_SIZE, ConfigPorts, ECAM_BUS_SIZE, Ecam};
pub use endpoint::{Capability, CapabilityWindow, Endpoint, EndpointError, Identity};
pub use function::BarSpace;
pub use msix::Msix;
pub use regions::Regions;
pub use root::{PlugError, Root, SLOTS};
