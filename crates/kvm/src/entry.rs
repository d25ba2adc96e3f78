//! The state a boot protocol wants the first vCPU in.
//!
//! PVH (Xen "x86/HVM direct boot ABI"): 32-bit protected mode, flat segments, paging off, `ebx` = start info.
//! Linux 64-bit (`Documentation/arch/x86/boot.rst` §"64-bit boot protocol"): long mode, low memory identity-mapped, flat
//! segments with selectors 0x10 and 0x18 in a loaded GDT, `rsi` = zero page.

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

/// Bytes [`BootTables::write`] fills, from a page boundary on: seven pages.
pub const BOOT_TABLES_BYTES: u64 = 7 * PAGE;

const PAGE: u64 = 4096;

/// CR0: protection on (Intel SDM vol. 3A §2.5).
const CR0_PE: u64 = 1;
/// CR0: extension type, always one.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging on.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode needs.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// Page table entry: present, writable.
const PTE_TABLE: u64 = 0b11;
/// Page table entry: present, writable, a 2 MiB page.
const PTE_2M: u64 = 0b1000_0011;

/// Selectors of the 64-bit Linux boot protocol.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Type nibbles of segment descriptors (Intel SDM vol. 3A §3.4.5.1, §3.5), accessed resp. busy.
const CODE_READ: u8 = 0xb;
const DATA_WRITE: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

/// Page tables and descriptor table for a long-mode start, in guest RAM: 0–4 GiB mapped one to one, writable, executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTables {
    root: u64,
    gdt: u64,
}

impl BootTables {
    /// Writes them at `at` (a page boundary below 4 GiB; [`BOOT_TABLES_BYTES`] long).
    pub fn write(memory: &GuestMemory, at: GuestAddress) -> Result<Self, GuestMemoryError> {
        let page = |number: u64| GuestAddress(at.0 + number * PAGE);
        let store =
            |table: GuestAddress, slot: u64, value: u64| memory.write_obj(value, GuestAddress(table.0 + slot * 8));
        for number in 0..BOOT_TABLES_BYTES / PAGE {
            memory.write_slice(&[0; 4096], page(number))?;
        }
        store(page(0), 0, page(1).0 | PTE_TABLE)?;
        for gib in 0..4 {
            store(page(1), gib, page(2 + gib).0 | PTE_TABLE)?;
        }
        for frame in 0..4 * 512 {
            store(page(2), frame, frame << 21 | PTE_2M)?;
        }
        let gdt = page(6);
        store(gdt, u64::from(BOOT_CS / 8), descriptor(&code(BOOT_CS, true)))?;
        store(gdt, u64::from(BOOT_DS / 8), descriptor(&data(BOOT_DS)))?;
        store(gdt, u64::from(BOOT_TSS / 8), descriptor(&task(BOOT_TSS)))?;
        Ok(Self { root: at.0, gdt: gdt.0 })
    }
}

/// Flat 32-bit protected mode.
pub(crate) fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, code(BOOT_CS, false));
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
}

/// Long mode on `tables`.
pub(crate) fn long_mode(sregs: &mut kvm_sregs, tables: &BootTables) {
    set_segments(sregs, code(BOOT_CS, true));
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = tables.root;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    // The last descriptor, the task's, takes 16 bytes in long mode.
    sregs.gdt = kvm_dtable {
        base: tables.gdt,
        limit: BOOT_TSS + 15,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
}

fn set_segments(sregs: &mut kvm_sregs, cs: kvm_segment) {
    sregs.cs = cs;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data(BOOT_DS);
    }
    sregs.tr = task(BOOT_TSS);
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn code(selector: u16, long: bool) -> kvm_segment {
    kvm_segment {
        l: long.into(),
        db: (!long).into(),
        ..flat(selector, CODE_READ)
    }
}

fn data(selector: u16) -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat(selector, DATA_WRITE)
    }
}

/// A task-state segment nobody looks into; entering the guest demands one.
fn task(selector: u16) -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        s: 0,
        g: 0,
        ..flat(selector, TSS_BUSY)
    }
}

/// The segment as a descriptor in memory (Intel SDM vol. 3A §3.4.5); base 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3;
    limit & 0xffff | u64::from(access) << 40 | (limit >> 16 & 0xf) << 48 | u64::from(flags) << 52
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestmem::MemoryConfig;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(descriptor(&code(BOOT_CS, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(BOOT_CS, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data(BOOT_DS)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task(BOOT_TSS)), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn tables_map_four_gib_one_to_one() {
        let memory = GuestMemory::new(MemoryConfig {
            size_bytes: 1 << 20,
            hugepages: None,
            prefault: false,
        })
        .unwrap();
        let tables = BootTables::write(&memory, GuestAddress(0x9000)).unwrap();
        let walk = |address: u64| {
            let entry = |table: u64, shift: u32| -> u64 {
                let slot = address >> shift & 0x1ff;
                memory.read_obj(GuestAddress((table & !0xfff) + slot * 8)).unwrap()
            };
            entry(entry(entry(tables.root, 39), 30), 21)
        };
        for address in [0, 0x20_0000, 0x3fff_ffff, 0xc000_0000, 0xffff_ffff] {
            assert_eq!(walk(address), address & !0x1f_ffff | PTE_2M);
        }
        assert!(BootTables::write(&memory, GuestAddress((1 << 20) - PAGE)).is_err());
    }
}
