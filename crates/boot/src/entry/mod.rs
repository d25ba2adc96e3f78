//! The state in which a kernel is entered: structures in guest RAM, and what the boot CPU's registers must be.

mod linux64;
mod pvh;

use guestmem::GuestMemoryError;

pub(crate) use linux64::write as write_linux64;
pub(crate) use pvh::write as write_pvh;

use crate::memory_map;

/// How the boot CPU starts. Everything in guest RAM that this names is there; the registers are the machine's to set.
/// Registers not named are as after reset; interrupts are off (`RFLAGS` = 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// PVH (Xen's `docs/misc/pvh.pandoc`): 32-bit protected mode, paging off, `CR0.PE` set and `CR4` zero; CS a flat 4 GiB
    /// 32-bit code segment, DS, ES and SS flat data segments, TR a 32-bit TSS of limit 0x67.
    Pvh {
        /// First instruction.
        rip: u32,
        /// Address of `hvm_start_info`, for `EBX`.
        start_info: u32,
    },
    /// 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol"): long mode, paging on. The machine writes
    /// identity page tables and a descriptor table at [`crate::layout::BOOT_TABLES`].
    Linux64 {
        /// First instruction.
        rip: u64,
        /// Address of `boot_params`, for `RSI`.
        zero_page: u64,
    },
}

/// What a kernel is told besides its entry point.
pub(crate) struct Facts<'a> {
    pub(crate) command_line: u32,
    pub(crate) rsdp: u64,
    /// Where the initial RAM disk is and its length, bytes.
    pub(crate) initrd: Option<(u32, u32)>,
    pub(crate) memory_map: &'a [memory_map::Entry],
}

/// Guest RAM could not be written.
pub(crate) type WriteError = GuestMemoryError;
