//! Where everything of one machine is: computed once from its specification, so that the same specification always gives the
//! same machine, and hotplug finds its place kept free.
//!
//! ```text
//!   slot  0      host bridge            guest-physical
//!   slot  1      rng0                     0 … 3 GiB        RAM
//!   slots 2–17   disk0 … disk15           3 GiB … 3.5 GiB  32-bit window of PCI devices
//!   slots 18–21  net0 … net3              3.5 GiB …        ECAM, APICs
//!   slots 22–31  free, for hotplug        4 GiB …          the rest of RAM
//!                                         next 4 GiB mark  64-bit window of PCI devices
//! ```
//! What all machines share (ports, wired interrupts, the 32-bit window) is in [`boot::layout`], since tables tell guests of it.

use std::ops::Range;

use guestmem::layout::{HIGH_RAM_START, ram_ranges};
use spec::MachineSpec;

/// Slot of the entropy device.
pub const RNG_SLOT: u8 = 1;
/// Slot of the first disk; the others follow.
pub const FIRST_DISK_SLOT: u8 = 2;
/// Slots kept for disks, whether there or to come.
pub const DISK_SLOTS: u8 = 16;
/// Slot of the first interface; the others follow.
pub const FIRST_NET_SLOT: u8 = FIRST_DISK_SLOT + DISK_SLOTS;
/// Slots kept for interfaces.
pub const NET_SLOTS: u8 = 4;
/// Slots without a purpose yet.
pub const FREE_SLOTS: Range<u8> = FIRST_NET_SLOT + NET_SLOTS..pci::SLOTS;

/// Alignment of the 64-bit window, bytes; the largest BAR it can hold at its start.
const MMIO64_ALIGN: u64 = 4 << 30;
/// Length of the 64-bit window, bytes. Small enough for CPUs of 36 address bits with the RAM such hosts have.
const MMIO64_BYTES: u64 = 16 << 30;

/// Addresses and places of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    mmio64: Range<u64>,
    disks: Vec<u8>,
    nets: Vec<u8>,
}

impl Layout {
    /// The layout of `spec`.
    pub fn new(spec: &MachineSpec) -> Self {
        let ram_end = ram_ranges(spec.memory().size_bytes)
            .last()
            .map_or(0, |(start, length)| start + length);
        let start = ram_end.max(HIGH_RAM_START).next_multiple_of(MMIO64_ALIGN);
        // The specification's limits and the slots kept are compared by a test.
        let disks = (FIRST_DISK_SLOT..FIRST_NET_SLOT)
            .zip(spec.disks())
            .map(|(slot, _)| slot);
        let nets = (FIRST_NET_SLOT..FREE_SLOTS.start)
            .zip(spec.nets())
            .map(|(slot, _)| slot);
        Self {
            mmio64: start..start + MMIO64_BYTES,
            disks: disks.collect(),
            nets: nets.collect(),
        }
    }

    /// The 64-bit window of PCI devices, guest-physical.
    pub fn mmio64(&self) -> Range<u64> {
        self.mmio64.clone()
    }

    /// All windows for BARs, the preferred first: what is below 4 GiB can be reached by every guest in every mode.
    pub fn bar_windows(&self) -> Vec<Range<u64>> {
        let start = boot::layout::MMIO32_START;
        vec![start..start + boot::layout::MMIO32_BYTES, self.mmio64()]
    }

    /// Slots of the disks, in the specification's order.
    pub fn disk_slots(&self) -> &[u8] {
        &self.disks
    }

    /// Slots of the interfaces, in the specification's order.
    pub fn net_slots(&self) -> &[u8] {
        &self.nets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{disks, net, spec};

    const GIB: u64 = 1 << 30;

    fn with_memory(size_bytes: u64) -> Layout {
        Layout::new(&spec(|parts| parts.memory.size_bytes = size_bytes))
    }

    #[test]
    fn the_64_bit_window_is_above_all_ram() {
        for (ram, window) in [(GIB / 2, 4), (3 * GIB, 4), (6 * GIB, 8), (7 * GIB, 8), (8 * GIB, 12)] {
            let layout = with_memory(ram);
            assert_eq!(layout.mmio64().start, window * GIB, "{ram:#x} bytes of RAM");
            assert_eq!(layout.mmio64().end - layout.mmio64().start, 16 * GIB);
        }
    }

    #[test]
    fn bars_prefer_the_window_below_the_ecam() {
        let windows = with_memory(GIB).bar_windows();
        assert_eq!(windows[0], 0xc000_0000..0xe000_0000);
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn the_largest_machine_has_a_slot_for_everything_and_some_left() {
        let layout = Layout::new(&spec(|parts| {
            parts.disks = disks(16);
            parts.nets = vec![net(1); 4];
        }));
        let mut slots = [&[0, RNG_SLOT], layout.disk_slots(), layout.net_slots()].concat();
        assert_eq!(slots, (0..22).collect::<Vec<_>>());
        slots.extend(FREE_SLOTS);
        assert_eq!(slots.len(), usize::from(pci::SLOTS));
    }

    #[test]
    fn a_place_does_not_depend_on_what_else_there_is() {
        let alone = Layout::new(&spec(|parts| parts.nets = vec![net(1)]));
        let crowded = Layout::new(&spec(|parts| {
            parts.disks = disks(9);
            parts.nets = vec![net(1); 2];
        }));
        assert_eq!(alone.net_slots()[0], crowded.net_slots()[0]);
    }
}
