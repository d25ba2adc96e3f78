//! The interrupt table, and counting of what comes.

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::{apic, cpu, println};

/// Vectors with an entry.
const VECTORS: usize = 80;
/// Below are the CPU's exceptions.
const EXCEPTIONS: usize = 32;
/// Nothing here asks for debug exceptions, but an interpreting KVM sends one at the end of a longer `hlt`: passed over.
const DEBUG_EXCEPTION: usize = 1;
/// Present interrupt gate of ring 0.
const GATE: u64 = 0x8e00;
const CODE: u64 = 0x08;

static mut TABLE: [[u64; 2]; VECTORS] = [[0; 2]; VECTORS];
static COUNTS: [AtomicU32; VECTORS] = [const { AtomicU32::new(0) }; VECTORS];

unsafe extern "C" {
    static interrupt_entries: u8;
}

/// How often `vector` came, on all CPUs together.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::SeqCst)
}

/// Loads the table; on every CPU once, on the boot CPU first.
pub fn load() {
    let entries = addr_of!(interrupt_entries) as u64;
    let table = addr_of_mut!(TABLE).cast::<[u64; 2]>();
    for vector in 0..VECTORS {
        let entry = entries + vector as u64 * 16;
        let low = entry & 0xffff | CODE << 16 | GATE << 32 | (entry & 0xffff_0000) << 32;
        // SAFETY: within the table; every CPU writes the same.
        unsafe { table.add(vector).write([low, entry >> 32]) };
    }
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&(VECTORS as u16 * 16 - 1).to_le_bytes());
    pointer[2..].copy_from_slice(&(table as u64).to_le_bytes());
    // SAFETY: the table is complete, stays where it is, and its entries save what they change.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr(), options(nostack)) };
}

#[unsafe(no_mangle)]
extern "C" fn interrupt_main(vector: u64, error: u64, rip: u64) {
    let vector = vector as usize;
    if vector == DEBUG_EXCEPTION {
        return;
    }
    if vector < EXCEPTIONS {
        println!("FAIL exception: vector {vector} error {error:#x} at {rip:#x}");
        cpu::exit(0x7f);
    }
    COUNTS[vector].fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}
