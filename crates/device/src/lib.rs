//! The contract between a machine and its devices.
//!
//! A device is told *what* happened (a register was touched, the machine pauses) and never *where* it lives: addresses,
//! interrupt routes and buses belong to the machine that holds it. Nothing here knows of KVM.
//!
//! ```text
//!            start()                 pause() -> Draining.wait()
//!   built ───────────▶ running ─────────────────────────▶ paused
//!                        ▲  │                               │
//!                        │  └── reset() (stays running)     │
//!                        └──────────── resume() ◀───────────┘
//!   built ── Migrate::load() ──▶ paused                     paused ── Migrate::save() ──▶ sections
//! ```

mod bus;
#[cfg(any(test, feature = "test-utils"))]
#[allow(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a conformance test fails by panicking"
)]
pub mod conformance;
mod draining;
mod interrupt;
mod migration;

pub use bus::{Bus, BusHandler, Doorbell, MapError};
pub use draining::Draining;
pub use interrupt::{IrqLine, MsiMessage, MsiRoutes};
pub use migration::{Migrate, Migration, Motion, SaveError};
pub use vmm_sys_util::eventfd::EventFd;

/// A thing in a machine that has a life of its own.
///
/// All methods take `&self`: a device owns its locks, so that vCPU threads, its workers and the state driver may call at
/// once. None may block on the guest.
pub trait Device: Send + Sync {
    /// A name that is unique in the machine and stable over its life, as `disk0` or `serial`.
    fn name(&self) -> &str;

    /// Called once, before the first vCPU runs. Workers that must exist from the start are started here.
    fn start(&self);

    /// Stop producing work for others: no guest memory is touched and no interrupt raised once the returned token has been
    /// waited for. Register accesses are still accepted, and work they ask for is held until [`Device::resume`]. The caller
    /// has stopped every vCPU first. All devices are asked before any is waited for, so that they drain side by side.
    fn pause(&self) -> Draining;

    /// Undo [`Device::pause`], and begin with the work that was held.
    fn resume(&self);

    /// Return to the state at power-on. The caller guarantees that no vCPU runs; in-flight work is finished or dropped
    /// before this returns, and guest memory is not touched afterwards.
    fn reset(&self);

    /// What of it is saved when its machine moves to another process.
    fn migration(&self) -> Migration<'_>;
}
