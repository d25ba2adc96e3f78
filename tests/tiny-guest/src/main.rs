//! A kernel of a few KiB that exercises the machine it runs on and says what it found.
//!
//! The command line says what to do: `test=NAME[,NAME…]`, the names of [`scenarios`]. Each prints one line on the first serial
//! port, `PASS name` or `FAIL name: why`; then comes `DONE failures=N`, and the debug-exit port (0xf4) gets `N`. Scenarios that
//! do not come back (`spin`, `reset`, …) print `READY name` first. The first line is `TINY entry=pvh|linux64`.
//!
//! Build it in this folder by `cargo build --release`; the ELF file is `target/x86_64-unknown-none/release/tiny-guest`. It has
//! a PVH note and a 64-bit Linux entry, so it boots either way.
//!
//! It must stay small and plain: some implementations of KVM interpret all of it, at a million instructions per second, and
//! know neither SSE nor `int3`, `xrstor` and `cmpxchg16b`.

#![no_std]
#![no_main]

mod acpi;
mod apic;
mod blk;
mod console;
mod cpu;
mod info;
mod interrupts;
mod memory;
mod outcome;
mod pattern;
mod pci;
mod scenarios;
mod smp;
mod virtio;

use core::arch::global_asm;

use crate::info::BootInfo;

global_asm!(include_str!("entry.S"), options(att_syntax));

/// Called by the entry code on the boot CPU: long mode, identity mapping, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn boot_main(info: u64, protocol: u32) -> ! {
    let info = BootInfo::read(info, protocol);
    println!("TINY entry={}", if protocol == 0 { "pvh" } else { "linux64" });
    interrupts::load();
    apic::enable();
    let failures = scenarios::run(&info);
    println!("DONE failures={failures}");
    cpu::exit(failures)
}

#[panic_handler]
fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAIL panic: {}", panic.message());
    if let Some(place) = panic.location() {
        println!("at {}:{}", place.file(), place.line());
    }
    cpu::exit(0x7e)
}
