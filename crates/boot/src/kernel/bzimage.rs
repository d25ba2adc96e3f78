//! bzImage kernels (Documentation/arch/x86/boot.rst in the Linux source).

use std::fs::File;
use std::io::Cursor;

use guestmem::{ByteValued, GuestMemory};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;

use super::{Kernel, KernelError, Protocol, check_room, elf, payload};
use crate::image::Image;

/// Where the set-up header begins.
const HEADER: usize = 0x1f1;
/// Where its magic is.
const MAGIC_AT: usize = 0x202;
/// Its magic.
const MAGIC: [u8; 4] = *b"HdrS";
/// Oldest protocol with `init_size` and `pref_address` (Linux 2.6.31) and a 64-bit entry by `xloadflags` (2.12, Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x020c;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry, 0x200 behind the start.
const XLF_KERNEL_64: u16 = 1;
/// Distance of the 64-bit entry from the start of the loaded code, bytes.
const ENTRY_64: u64 = 0x200;
/// Sector of the set-up code, bytes.
const SECTOR: u64 = 512;
/// No bzImage is as long, bytes. Bounds what is read into this process.
const MAX_BYTES: u64 = 512 << 20;

/// True if an image that begins so is a bzImage (or its even older sibling).
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// Reads the set-up header, without what lies behind its end.
fn read_header(file: &File, len: u64) -> Result<setup_header, KernelError> {
    let end = (HEADER + size_of::<setup_header>()) as u64;
    if len < end {
        let what = "the bzImage set-up header";
        return Err(KernelError::Truncated { what, end, len });
    }
    let mut header = setup_header::default();
    file.read_at(HEADER as u64, header.as_mut_slice())
        .map_err(|source| KernelError::Read { source })?;
    // The jump's second byte is the distance from 0x202 to the header's end.
    let own_bytes = MAGIC_AT - HEADER + usize::from(header.jump >> 8);
    if let Some(behind) = header.as_mut_slice().get_mut(own_bytes..) {
        behind.fill(0);
    }
    let unsupported = |what| Err(KernelError::Unsupported { what });
    if header.version < OLDEST_PROTOCOL || header.loadflags & LOADED_HIGH == 0 {
        return unsupported("it is a bzImage with a boot protocol older than 2.12 (Linux 3.8)");
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return unsupported("it is a 32-bit bzImage");
    }
    Ok(header)
}

/// Loads the bzImage in `file`.
pub(super) fn load(memory: &GuestMemory, file: &File, len: u64, ram_end: u64) -> Result<Kernel, KernelError> {
    let header = read_header(file, len)?;
    if len > MAX_BYTES {
        let what = "it is a bzImage of more than 512 MiB";
        return Err(KernelError::Unsupported { what });
    }
    // Zero means four, by history.
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let code_start = (setup_sectors + 1) * SECTOR;
    if code_start >= len {
        let what = "the bzImage set-up code";
        let end = code_start + 1;
        return Err(KernelError::Truncated { what, end, len });
    }
    let mut kernel = match extract(file, &header, code_start, len, ram_end)? {
        Some(vmlinux) => elf::load(memory, &vmlinux.as_slice(), &mut Cursor::new(&vmlinux), ram_end)?,
        None => load_compressed(memory, file, &header, len - code_start, ram_end)?,
    };
    kernel.header = Some(header);
    Ok(kernel)
}

/// The vmlinux in the bzImage; `None` if it is compressed in a way only the guest knows. No larger
/// than what the guest has below `ram_end`: it would not fit anyway, and this process must not grow by what an image claims.
fn extract(
    file: &File,
    header: &setup_header,
    code_start: u64,
    len: u64,
    ram_end: u64,
) -> Result<Option<Vec<u8>>, KernelError> {
    let start = code_start + u64::from(header.payload_offset);
    let end = start + u64::from(header.payload_length);
    if end > len {
        let what = "the compressed kernel";
        return Err(KernelError::Truncated { what, end, len });
    }
    let mut compressed = vec![0; usize::try_from(end - start).unwrap_or(0)];
    file.read_at(start, &mut compressed)
        .map_err(|source| KernelError::Read { source })?;
    let limit = header.init_size.min(u32::try_from(ram_end).unwrap_or(u32::MAX));
    let vmlinux = payload::decompress(&compressed, limit)?;
    Ok(vmlinux.filter(|bytes| bytes.starts_with(&elf::MAGIC)))
}

/// Loads the bzImage's own code, which decompresses the kernel in the guest.
fn load_compressed(
    memory: &GuestMemory,
    file: &File,
    header: &setup_header,
    code_bytes: u64,
    ram_end: u64,
) -> Result<Kernel, KernelError> {
    let start = u64::from(header.code32_start);
    let workspace_start = header.pref_address;
    let workspace_end = workspace_start
        .checked_add(u64::from(header.init_size))
        .ok_or(KernelError::Damaged {
            what: "the memory a bzImage asks for wraps around the address space",
        })?;
    check_room(start, start + code_bytes, ram_end)?;
    check_room(workspace_start, workspace_end, ram_end)?;
    if code_bytes <= ENTRY_64 {
        let what = "the code of the bzImage ends before its 64-bit entry";
        return Err(KernelError::Damaged { what });
    }
    let mut reader = file.try_clone().map_err(|source| KernelError::Read { source })?;
    BzImage::load(memory.inner(), None, &mut reader, None).map_err(|source| KernelError::Load { source })?;
    Ok(Kernel {
        protocol: Protocol::Linux64(start + ENTRY_64),
        end: workspace_end.max(start + code_bytes),
        header: None,
    })
}
