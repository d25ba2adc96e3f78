//! Starting the other CPUs.

use core::ptr::addr_of;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{read, write};
use crate::{apic, cpu, interrupts};

/// Where the trampoline is copied: page 8, below 1 MiB and used by nothing else.
const TRAMPOLINE: u64 = 0x8000;
/// Interrupt that the other CPUs are asked by.
pub const INTERRUPT: u8 = 0x41;
/// Most CPUs, from the room for their stacks.
pub const MOST: usize = 64;
/// How often each CPU adds to [`SHARED`].
const ROUNDS: u32 = 200;

static ONLINE: AtomicU32 = AtomicU32::new(0);
static SHARED: AtomicU32 = AtomicU32::new(0);
static IDS: [AtomicU32; MOST] = [const { AtomicU32::new(u32::MAX) }; MOST];

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

#[unsafe(no_mangle)]
extern "C" fn ap_main(index: u32) -> ! {
    interrupts::load();
    apic::enable();
    for _ in 0..ROUNDS {
        SHARED.fetch_add(1, Ordering::SeqCst);
    }
    IDS[index as usize].store(apic::id(), Ordering::SeqCst);
    ONLINE.fetch_add(1, Ordering::SeqCst);
    loop {
        cpu::wait_for_interrupt();
    }
}

/// Starts the CPUs `ids` (without this one) and checks that each came, counted, and takes interrupts.
pub fn start(ids: &[u32]) -> Result<(), &'static str> {
    let (from, end) = (addr_of!(ap_trampoline) as u64, addr_of!(ap_trampoline_end) as u64);
    for offset in 0..end - from {
        write(TRAMPOLINE + offset, read::<u8>(from + offset));
    }
    for &id in ids {
        apic::send(id, apic::INIT);
        apic::send(id, apic::STARTUP | (TRAMPOLINE >> 12) as u32);
    }
    let count = ids.len() as u32;
    if !cpu::wait_until(|| ONLINE.load(Ordering::SeqCst) == count) {
        return Err("not all CPUs came");
    }
    if SHARED.load(Ordering::SeqCst) != count * ROUNDS {
        return Err("additions to shared memory were lost");
    }
    let all_known = ids
        .iter()
        .all(|id| IDS.iter().any(|seen| seen.load(Ordering::SeqCst) == *id));
    if !all_known {
        return Err("a CPU came with an id that no table names");
    }
    for (asked, &id) in (1_u32..).zip(ids) {
        apic::send(id, u32::from(INTERRUPT) | 0x4000);
        if !cpu::wait_until(|| interrupts::count(INTERRUPT) == asked) {
            return Err("a CPU takes no interrupt");
        }
    }
    Ok(())
}
