//! Single instructions.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

/// Port that ends the machine.
const DEBUG_EXIT: u16 = 0xf4;

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: reading a port touches no memory of this program.
            unsafe { asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// Writes a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: no port of this machine makes a device write memory of this program.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack, preserves_flags)) };
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in32, out32, u32, "eax");

/// Ends the machine with `code`; halts where there is no such port.
pub fn exit(code: u32) -> ! {
    out32(DEBUG_EXIT, code);
    stop()
}

/// Halts for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: with interrupts off nothing goes on behind this.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    // SAFETY: the interrupt table is loaded before anything calls this.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: only delays handlers.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets interrupts in and halts until one came; none that comes in between is missed.
pub fn wait_for_interrupt() {
    // SAFETY: the interrupt table is loaded before anything calls this.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Reads a model-specific register that exists.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register that the CPU has (callers look at CPUID) changes nothing.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register that exists; only those of the local APIC are written here.
pub fn write_msr(msr: u32, value: u64) {
    // SAFETY: APIC registers do not change how this program's memory is seen.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// The time-stamp counter.
pub fn timestamp() -> u64 {
    // SAFETY: every 64-bit CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// CPUID leaf 1, register ECX.
pub fn features() -> u32 {
    __cpuid(1).ecx
}

/// Waits until `done`, at most some seconds (2^34 cycles). True if it came.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = timestamp();
    while !done() {
        if timestamp().wrapping_sub(start) > 1 << 34 {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Faults until the CPU gives up: an empty interrupt table, then an invalid instruction.
pub fn triple_fault() -> ! {
    let empty = [0_u8; 10];
    // SAFETY: the end of this program is what is wanted.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) empty.as_ptr(), options(noreturn)) }
}
