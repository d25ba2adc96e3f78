//! Where RAM lies in the guest's physical address space.
//!
//! ```text
//!   0 ─────────── 3 GiB ─────────── 4 GiB ───────────────▶
//!   │     RAM     │  devices, ECAM, │  the rest of the RAM
//!   │             │  APICs: no RAM  │
//! ```

/// First byte above low RAM: 3 GiB. The GiB from here to 4 GiB holds 32-bit device windows, ECAM and the APICs.
pub const LOW_RAM_END: u64 = 0xC000_0000;

/// First byte of high RAM: 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Guest page, the unit of dirty logs and the smallest unit of RAM size, bytes (x86-64).
pub const PAGE_SIZE: u64 = 4096;

/// The pieces of `size_bytes` of RAM: (guest physical address, length in bytes), ascending, none empty.
pub fn ram_ranges(size_bytes: u64) -> Vec<(u64, u64)> {
    let low = size_bytes.min(LOW_RAM_END);
    let high = size_bytes - low;
    [(0, low), (HIGH_RAM_START, high)]
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_steps_over_the_device_hole() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ram_ranges(0), vec![]);
        assert_eq!(ram_ranges(GIB), vec![(0, GIB)]);
        assert_eq!(ram_ranges(3 * GIB), vec![(0, 3 * GIB)]);
        assert_eq!(ram_ranges(6 * GIB), vec![(0, 3 * GIB), (4 * GIB, 3 * GIB)]);
    }
}
