//! Physical memory: volatile access, and mapping of what lies above 4 GiB.

use core::ptr::{addr_of, addr_of_mut};

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, 2 MiB, uncached.
const LARGE_UNCACHED: u64 = 0x9b;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SPARE_TABLES: usize = 24;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut SPARE: [Table; SPARE_TABLES] = [const { Table([0; 512]) }; SPARE_TABLES];
static mut SPARE_USED: usize = 0;

unsafe extern "C" {
    static page_root: u8;
    static image_end: u8;
}

/// First address behind this program.
pub fn program_end() -> u64 {
    addr_of!(image_end) as u64
}

/// Reads a value at a physical address.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: all of the address space is ours: mapped to itself below 4 GiB and by `map` above; any bytes are a valid T,
    // since only integers are read.
    unsafe { core::ptr::read_volatile(address as *const T) }
}

/// Writes a value at a physical address.
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `read`; callers write to device registers and to memory that this program does not use.
    unsafe { core::ptr::write_volatile(address as *mut T, value) }
}

/// Maps the 2 MiB around `address` to themselves, if they are not yet. Only the boot CPU may.
pub fn map(address: u64) {
    let mut table = addr_of!(page_root) as u64;
    for shift in [39, 30] {
        let slot = table + (address >> shift & 511) * 8;
        if read::<u64>(slot) & 1 == 0 {
            write(slot, spare_table() | TABLE);
        }
        table = read::<u64>(slot) & ADDRESS;
    }
    let slot = table + (address >> 21 & 511) * 8;
    if read::<u64>(slot) & 1 == 0 {
        write(slot, address & !0x1f_ffff | LARGE_UNCACHED);
    }
}

fn spare_table() -> u64 {
    // SAFETY: only the boot CPU maps, and not from interrupt handlers.
    let index = unsafe { SPARE_USED };
    assert!(index < SPARE_TABLES, "out of page tables");
    // SAFETY: as above.
    unsafe { SPARE_USED = index + 1 };
    addr_of_mut!(SPARE) as u64 + index as u64 * 4096
}
