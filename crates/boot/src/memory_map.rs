//! The memory map a guest is told of (e820, and the same as PVH memory map).

use guestmem::layout::ram_ranges;

use crate::layout;

/// RAM the guest may use.
pub(crate) const RAM: u32 = 1;
/// Not to be touched.
pub(crate) const RESERVED: u32 = 2;

/// One range; the types are e820's, which PVH shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: u32,
}

/// The ranges for a machine with `ram_bytes` of RAM, ascending, without overlap.
pub(crate) fn entries(ram_bytes: u64) -> Vec<Entry> {
    let entry = |start, end: u64, kind| Entry {
        start,
        bytes: end.saturating_sub(start),
        kind,
    };
    let mut entries = vec![
        entry(0, layout::CONVENTIONAL_END, RAM),
        entry(layout::RSDP, layout::HIGH_MEMORY, RESERVED),
    ];
    for (start, bytes) in ram_ranges(ram_bytes) {
        entries.push(entry(start.max(layout::HIGH_MEMORY), start + bytes, RAM));
    }
    // Linux trusts the MCFG table only for a range that is reserved.
    entries.push(entry(
        layout::ECAM_BASE,
        layout::ECAM_BASE + layout::ECAM_BYTES,
        RESERVED,
    ));
    entries.retain(|entry| entry.bytes > 0);
    entries.sort_by_key(|entry| entry.start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_ram_once_and_reserves_tables_and_ecam() {
        const GIB: u64 = 1 << 30;
        for ram in [2 << 20, 512 << 20, 3 * GIB, 6 * GIB, 100 * GIB] {
            let entries = entries(ram);
            for pair in entries.windows(2) {
                assert!(pair[0].start + pair[0].bytes <= pair[1].start, "{entries:x?}");
            }
            let usable: u64 = entries.iter().filter(|e| e.kind == RAM).map(|e| e.bytes).sum();
            assert_eq!(ram - usable, 0x10_0000 - 0x9_fc00, "{entries:x?}");
            assert!(
                entries
                    .iter()
                    .any(|e| e.kind == RESERVED && e.start == layout::ECAM_BASE)
            );
        }
    }
}
