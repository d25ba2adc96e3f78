//! `/dev/kvm`: virtual machines, vCPUs and their exits, interrupt routes, CPUID.
//!
//! Concrete on purpose: there is one hypervisor, and no trait that pretends otherwise. Nothing here knows a device, a bus or
//! a boot format.
//!
//! ```text
//!   Kvm::open ─▶ Vm::create(&Kvm, &GuestMemory) ─▶ Vm::create_vcpu(index) ─▶ Vcpu::set_pvh_entry ─▶ Vcpu::run loop
//!                 │  memory slots, irqchip                                      (first vCPU only)     ▲
//!                 ├─ IrqLineFd (IOAPIC pins)   MsiIrq (one per MSI-X vector)                          │
//!                 └─ add_doorbell (ioeventfd)                                          Kicker::kick ──┘
//! ```
//!
//! Works on `kvm_intel`, `kvm_amd` and on software implementations that lack the optional capabilities: see
//! [`Capabilities`].

mod chips;
mod cpuid;
mod entry;
mod error;
mod exit;
mod kick;
mod msr;
mod registers;
mod routing;
mod savable;
mod state;
mod system;
mod vcpu;
mod vcpu_state;
mod vm;

pub use cpuid::{Topology, TopologyError};
pub use entry::{BOOT_TABLES_BYTES, BootTables};
pub use error::CallError;
pub use exit::{Exit, SystemEventKind};
pub use kick::Kicker;
pub use registers::RegisterDump;
pub use routing::{IOAPIC_PINS, IrqLineFd, IrqRouting, MsiIrq, MsiMessage, RouteError};
pub use state::{ChipState, VcpuState};
pub use system::{Capabilities, Kvm, OpenError};
pub use vcpu::{RunError, Vcpu};
pub use vcpu_state::LoadVcpuError;
pub use vm::{CreateVmError, Doorbell, IDENTITY_MAP_START, KVM_RESERVED_END, TSS_START, Vm};

/// The event type of irqfds and ioeventfds.
pub use vmm_sys_util::eventfd::EventFd;
