//! The zero page of the 64-bit boot protocol.

use guestmem::{ByteValued, Bytes, GuestAddress, GuestMemory};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::{Entry, Facts, WriteError};
use crate::layout;

/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Of the boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: loaded high; the heap pointer is not set.
const LOADED_HIGH: u8 = 1;
/// Alignment of kernels without a header of their own, bytes.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// Writes what the 64-bit entry at `rip` is given; `header` is that of the bzImage the kernel came in.
pub(crate) fn write(
    memory: &GuestMemory,
    rip: u64,
    header: Option<setup_header>,
    facts: &Facts<'_>,
) -> Result<Entry, WriteError> {
    let zero_page = zero_page(header, facts);
    memory.write_slice(zero_page.as_slice(), GuestAddress(layout::ZERO_PAGE))?;
    Ok(Entry::Linux64 {
        rip,
        zero_page: layout::ZERO_PAGE,
    })
}

fn zero_page(header: Option<setup_header>, facts: &Facts<'_>) -> boot_params {
    let mut page = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            loadflags: LOADED_HIGH,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..setup_header::default()
        }),
        acpi_rsdp_addr: facts.rsdp,
        ..boot_params::default()
    };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = facts.command_line;
    let (start, bytes) = facts.initrd.unwrap_or((0, 0));
    page.hdr.ramdisk_image = start;
    page.hdr.ramdisk_size = bytes;
    // The table in the page has 128 places; a machine needs half a dozen.
    let mut table = page.e820_table;
    let mut count = 0;
    for (place, entry) in table.iter_mut().zip(facts.memory_map) {
        *place = boot_e820_entry {
            addr: entry.start,
            size: entry.bytes,
            r#type: entry.kind,
        };
        count += 1;
    }
    page.e820_table = table;
    page.e820_entries = count;
    page
}
