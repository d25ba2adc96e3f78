//! What the tables say about a machine beyond its fixed layout.

use std::ops::RangeInclusive;

/// The machine as its tables describe it. [`crate::layout`] has what all machines share.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Local APIC id of every vCPU, the boot CPU first. The position is the ACPI processor uid.
    pub apic_ids: Vec<u32>,
    /// Window for 64-bit PCI memory BARs, above all RAM; first and last address.
    pub mmio64: RangeInclusive<u64>,
    /// The machine's UUID, bytes in text order; SMBIOS shows it.
    pub uuid: [u8; 16],
    /// Values of the registers that AML and FADT name.
    pub registers: RegisterValues,
    /// The generation id that the guest finds.
    pub generation: [u8; 16],
    /// There is a power management timer at [`crate::layout::PM_TIMER_PORT`].
    pub pm_timer: bool,
}

/// What the chipset expects in its registers.
#[derive(Debug, Clone, Copy)]
pub struct RegisterValues {
    /// Value that resets, in the reset register.
    pub reset: u8,
    /// `SLP_TYP` of soft off, 0 to 7.
    pub sleep_type_s5: u8,
    /// Bit of the event register that means the power button.
    pub power_button_event: u32,
    /// Bit of the event register that means another generation id.
    pub generation_event: u32,
    /// Index of the century in the clock's memory.
    pub rtc_century: u8,
}
