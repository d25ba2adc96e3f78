//! Local APIC, by x2APIC registers where the CPU has them, and the IOAPIC.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;
use crate::memory::{read, write};

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const APIC_BASE_MSR: u32 = 0x1b;
const ENABLE_X2APIC: u64 = 3 << 10;
const CPUID_X2APIC: u32 = 1 << 21;

/// Registers, as offsets of the memory-mapped APIC.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const TIMER_START: u32 = 0x380;
const TIMER_DIVIDER: u32 = 0x3e0;
/// Timer: again and again.
const PERIODIC: u32 = 1 << 17;
/// Divider of the timer's clock: 1.
const DIVIDE_BY_1: u32 = 0b1011;

/// Interrupt command: INIT, asserted.
pub const INIT: u32 = 0x4500;
/// Interrupt command: start-up at the page in the low byte.
pub const STARTUP: u32 = 0x4600;

static X2APIC: AtomicBool = AtomicBool::new(false);

fn x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

fn set(register: u32, value: u32) {
    if x2apic() {
        cpu::write_msr(0x800 + register / 16, u64::from(value));
    } else {
        write(LAPIC + u64::from(register), value);
    }
}

/// Switches this CPU's APIC on.
pub fn enable() {
    if cpu::features() & CPUID_X2APIC != 0 {
        cpu::write_msr(APIC_BASE_MSR, cpu::read_msr(APIC_BASE_MSR) | ENABLE_X2APIC);
        X2APIC.store(true, Ordering::Relaxed);
    }
    set(TASK_PRIORITY, 0);
    // Enabled; spurious interrupts would count as vector 63.
    set(SPURIOUS, 0x100 | 63);
}

/// This CPU's id.
pub fn id() -> u32 {
    if x2apic() {
        cpu::read_msr(0x800 + ID / 16) as u32
    } else {
        read::<u32>(LAPIC + u64::from(ID)) >> 24
    }
}

/// Sends an interrupt command (a vector, [`INIT`] or [`STARTUP`]) to the CPU with this id.
pub fn send(target: u32, command: u32) {
    if x2apic() {
        cpu::write_msr(0x830, u64::from(target) << 32 | u64::from(command));
    } else {
        write(LAPIC + u64::from(COMMAND_HIGH), target << 24);
        write(LAPIC + u64::from(COMMAND), command);
    }
}

/// Has the timer send `vector` every `cycles` of its clock.
pub fn start_timer(vector: u8, cycles: u32) {
    set(TIMER_DIVIDER, DIVIDE_BY_1);
    set(TIMER, u32::from(vector) | PERIODIC);
    set(TIMER_START, cycles);
}

/// The handler is done.
pub fn end_of_interrupt() {
    set(END_OF_INTERRUPT, 0);
}

/// Sends edges of IOAPIC input `pin` to this CPU as `vector`.
pub fn route_pin(pin: u32, vector: u8) {
    let set = |register: u32, value: u32| {
        write(IOAPIC, register);
        write(IOAPIC + 0x10, value);
    };
    set(0x10 + pin * 2 + 1, id() << 24);
    set(0x10 + pin * 2, u32::from(vector));
}
