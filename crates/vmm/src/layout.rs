//! Where everything of one machine is: computed once from its specification, so that the same specification always gives the
//! same machine, and hotplug finds its place kept free.
//!
//! ```text
//!   slot  0      host bridge            guest-physical
//!   slot  1      rng0                     0 … 3 GiB        RAM
//!   slots 2–17   disk0 … disk15           3 GiB … 3.5 GiB  32-bit window of PCI devices
//!   slots 18–21  net0 … net3              3.5 GiB …        ECAM, APICs
//!   slot  22     scsi0                    4 GiB …          the rest of RAM
//!   slots 23–31  free, for hotplug        next 4 GiB mark  64-bit window of PCI devices
//! ```
//! What all machines share (ports, wired interrupts, the 32-bit window) is in [`boot::layout`], since tables tell guests of it.

use std::ops::Range;

use guestmem::layout::{HIGH_RAM_START, ram_ranges};
use spec::{DiskBus, MachineSpec};

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
/// Slot of the SCSI controller, where there is one.
pub const SCSI_SLOT: u8 = FIRST_NET_SLOT + NET_SLOTS;
/// Slots without a purpose yet.
pub const FREE_SLOTS: Range<u8> = SCSI_SLOT + 1..pci::SLOTS;

/// Request queues of the SCSI controller: one per vCPU, but no more threads than pay off.
const SCSI_QUEUES_MAX: u32 = 4;

/// Alignment of the 64-bit window, bytes; the largest BAR it can hold at its start.
const MMIO64_ALIGN: u64 = 4 << 30;
/// Length of the 64-bit window, bytes. Small enough for CPUs of 36 address bits with the RAM such hosts have.
const MMIO64_BYTES: u64 = 16 << 30;

/// Addresses and places of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    mmio64: Range<u64>,
    scsi_queues: Option<u16>,
    nets: Vec<u8>,
}

impl Layout {
    /// The layout of `spec`.
    pub fn new(spec: &MachineSpec) -> Self {
        let ram_end = ram_ranges(spec.memory().size_bytes)
            .last()
            .map_or(0, |(start, length)| start + length);
        let start = ram_end.max(HIGH_RAM_START).next_multiple_of(MMIO64_ALIGN);
        let has_scsi = spec.disks().iter().any(|disk| disk.bus == DiskBus::Scsi);
        let queues = u16::try_from(spec.cpus().count().clamp(1, SCSI_QUEUES_MAX)).unwrap_or(1);
        let nets = (FIRST_NET_SLOT..SCSI_SLOT).zip(spec.nets()).map(|(slot, _)| slot);
        Self {
            mmio64: start..start + MMIO64_BYTES,
            scsi_queues: has_scsi.then_some(queues),
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

    /// Request queues of the SCSI controller, where the machine has one.
    pub const fn scsi_queues(&self) -> Option<u16> {
        self.scsi_queues
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
        let layout = Layout::new(&spec(|parts| parts.nets = vec![net(1); 4]));
        let mut slots = vec![0, RNG_SLOT];
        slots.extend(FIRST_DISK_SLOT..FIRST_NET_SLOT);
        slots.extend(layout.net_slots());
        slots.push(SCSI_SLOT);
        slots.extend(FREE_SLOTS);
        assert_eq!(slots, (0..pci::SLOTS).collect::<Vec<_>>());
        assert_eq!((usize::from(DISK_SLOTS), FREE_SLOTS.len()), (16, 9));
    }

    #[test]
    fn a_scsi_bus_is_there_for_those_who_want_one() {
        let with = |bus| {
            Layout::new(&spec(|parts| {
                parts.cpus.cores = 2;
                parts.disks = disks(2);
                parts.disks[1].bus = bus;
            }))
        };
        assert_eq!(with(DiskBus::Virtio).scsi_queues(), None);
        assert_eq!(with(DiskBus::Scsi).scsi_queues(), Some(2));
    }
}
