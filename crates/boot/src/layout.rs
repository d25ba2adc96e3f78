//! Fixed places of every machine: guest physical addresses, ports and interrupt numbers.
//!
//! ```text
//!   0x0000_0000  PVH or zero page, boot tables, command line            (free for the guest once it has read them)
//!   0x000a_0000  no RAM
//!   0x000e_0000  RSDP, ACPI tables, id       \ RAM that the memory map calls reserved
//!   0x000f_0000  SMBIOS, reset vector         /
//!   0x0010_0000  RAM: kernel from 1 MiB or 16 MiB on, initial RAM disk at the end
//!   0xc000_0000  32-bit windows of PCI devices
//!   0xe000_0000  ECAM, one bus (room for 256)
//!   0xfec0_0000  IOAPIC      0xfee0_0000  local APICs
//!  0x1_0000_0000 RAM above 3 GiB, then 64-bit windows of PCI devices, which the machine places
//! ```

use guestmem::layout::LOW_RAM_END;

/// `hvm_start_info` with its module list and memory map, one page.
pub(crate) const PVH_INFO: u64 = 0x2000;
/// `boot_params` for the 64-bit entry, one page.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Room for the page tables and descriptor table of the 64-bit entry, seven pages. The machine writes them.
pub const BOOT_TABLES: u64 = 0x9000;
/// The command line, NUL-terminated.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, bytes with its NUL.
pub(crate) const COMMAND_LINE_BYTES: usize = 0x1_0000;
/// Where usable low memory ends: by PC custom 1 KiB below 640 KiB.
pub(crate) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The RSDP, where a guest that got no pointer looks for it.
pub(crate) const RSDP: u64 = 0xe_0000;
/// The other ACPI tables.
pub(crate) const ACPI_TABLES: u64 = 0xe_0040;
/// First byte behind the ACPI tables.
pub(crate) const ACPI_TABLES_END: u64 = GENERATION_ID;
/// The generation id, 16 bytes, in a page of its own ("Virtual Machine Generation ID", Microsoft, 2018: cacheable memory that is not
/// the guest's to use).
pub(crate) const GENERATION_ID: u64 = 0xe_f000;
/// SMBIOS entry point; guests search for it from here (SMBIOS 3.7 §5.2.2).
pub(crate) const SMBIOS: u64 = 0xf_0000;
/// First byte behind the SMBIOS structures.
pub(crate) const SMBIOS_END: u64 = RESET_VECTOR;
/// F000:FFF0 of real mode, where software jumps that wants a PC to reset.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where kernels may begin: 1 MiB.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the 32-bit window for PCI memory BARs.
pub const MMIO32_START: u64 = LOW_RAM_END;
/// Length of that window, bytes: up to the ECAM.
pub const MMIO32_BYTES: u64 = ECAM_BASE - MMIO32_START;
/// PCI configuration space, memory-mapped (PCIe base specification 5.0 §7.2.2).
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Buses behind the ECAM: the root bus.
pub const ECAM_BUSES: u8 = 1;
/// Length of the ECAM, bytes: 1 MiB per bus.
pub const ECAM_BYTES: u64 = (ECAM_BUSES as u64) << 20;
/// Registers of the IOAPIC (in the kernel).
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// Registers of each vCPU's local APIC (in the kernel).
pub const LAPIC_BASE: u32 = 0xfee0_0000;

/// First port of the serial port COM1, eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt of COM1, an IOAPIC pin.
pub const SERIAL_GSI: u32 = 4;
/// First port of the real-time clock, two ports.
pub const RTC_PORT: u16 = 0x70;
/// Command port of the keyboard controller, which resets.
pub const KEYBOARD_CONTROLLER_PORT: u16 = 0x64;
/// First port of the power registers: sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;
/// Offset of the reset register in them.
pub(crate) const RESET_REGISTER: u16 = 2;
/// First port of the event register, four ports.
pub const EVENT_PORT: u16 = 0x604;
/// Interrupt of the event register, an IOAPIC pin.
pub const EVENT_GSI: u32 = 9;
/// First port of the power management timer, four ports.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Port by which test payloads leave; only in machines that ask for it.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
