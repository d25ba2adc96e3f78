//! What stands where a PC has its firmware's reset vector.
//!
//! Linux on a hardware-reduced ACPI machine takes it that there is EFI to reset with; without, it goes back to real mode and
//! jumps to this vector (`machine_real_restart`, arch/x86/kernel/reboot.c). Nothing but a few instructions that write the
//! reset register is needed there, else the guest would run through empty memory for ever.

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout;
use crate::platform::Platform;

/// Writes the instructions.
pub(crate) fn write(memory: &GuestMemory, platform: &Platform) -> Result<(), GuestMemoryError> {
    let [port_low, port_high] = (layout::POWER_PORT + layout::RESET_REGISTER).to_le_bytes();
    let code = [
        0xba,
        port_low,
        port_high, // mov dx, port
        0xb0,
        platform.registers.reset, // mov al, value
        0xee,                     // out dx, al
        0xf4,                     // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ];
    memory.write_slice(&code, GuestAddress(layout::RESET_VECTOR))
}
