//! PVH start info (Xen's `xen/include/public/arch-x86/hvm/start_info.h`).

use guestmem::{ByteValued, Bytes, GuestAddress, GuestMemory};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use super::{Entry, Facts, WriteError};
use crate::layout;

/// "xEn3" with the top bit set.
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
/// Where the module list is in the page.
const MODULES: u64 = layout::PVH_INFO + 0x80;
/// Where the memory map is in the page; room for 160 entries.
const MEMORY_MAP: u64 = layout::PVH_INFO + 0x100;

/// Writes what the PVH entry at `rip` is given.
pub(crate) fn write(memory: &GuestMemory, rip: u32, facts: &Facts<'_>) -> Result<Entry, WriteError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: u64::from(facts.command_line),
        rsdp_paddr: facts.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(facts.memory_map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    if let Some((start, bytes)) = facts.initrd {
        let module = hvm_modlist_entry {
            paddr: u64::from(start),
            size: u64::from(bytes),
            ..hvm_modlist_entry::default()
        };
        memory.write_slice(module.as_slice(), GuestAddress(MODULES))?;
        info.modlist_paddr = MODULES;
        info.nr_modules = 1;
    }
    let table: Vec<u8> = facts
        .memory_map
        .iter()
        .flat_map(|entry| {
            let entry = hvm_memmap_table_entry {
                addr: entry.start,
                size: entry.bytes,
                type_: entry.kind,
                reserved: 0,
            };
            entry.as_slice().to_vec()
        })
        .collect();
    memory.write_slice(&table, GuestAddress(MEMORY_MAP))?;
    memory.write_slice(info.as_slice(), GuestAddress(layout::PVH_INFO))?;
    Ok(Entry::Pvh {
        rip,
        start_info: u32::try_from(layout::PVH_INFO).unwrap_or(0),
    })
}
