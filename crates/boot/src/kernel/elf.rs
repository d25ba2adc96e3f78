//! ELF kernels: everything the headers claim is checked before `linux-loader` acts on it.

use std::io::{Read, Seek};
use std::ops::Range;

use guestmem::{GuestMemory, ReadVolatile};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};

use super::{Kernel, KernelError, Protocol, check_room};
use crate::image::{Image, field, u16_at, u32_at, u64_at};

/// First bytes of an ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

// System V gABI, "ELF Header" and "Program Header", for ELFCLASS64.
const HEADER_BYTES: usize = 64;
const CLASS: usize = 4;
const CLASS_64: u8 = 2;
const DATA: usize = 5;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE: usize = 16;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE: usize = 18;
const MACHINE_X86_64: u16 = 62;
const ENTRY: usize = 24;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const PROGRAM_HEADER_COUNT: usize = 56;
const PROGRAM_HEADER_BYTES: usize = 56;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// More program headers than any kernel has (Linux: 5).
const MAX_SEGMENTS: u16 = 64;
/// More notes than any kernel has, bytes (Linux: some hundreds).
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// Guest physical memory that the file's segments take, one range each.
fn check(image: &dyn Image, ram_end: u64) -> Result<(Vec<Range<u64>>, u64), KernelError> {
    let read = |source| KernelError::Read { source };
    let damaged = |what| Err(KernelError::Damaged { what });
    let len = image.len().map_err(read)?;
    if len < HEADER_BYTES as u64 {
        return Err(truncated("the ELF header", 0, HEADER_BYTES as u64, len));
    }
    let mut header = [0; HEADER_BYTES];
    image.read_at(0, &mut header).map_err(read)?;
    if field(&header, CLASS) != [CLASS_64]
        || field(&header, DATA) != [DATA_LITTLE_ENDIAN]
        || u16_at(&header, MACHINE) != MACHINE_X86_64
        || ![TYPE_EXEC, TYPE_DYN].contains(&u16_at(&header, TYPE))
    {
        let what = "it is an ELF file, but not an x86-64 executable";
        return Err(KernelError::Unsupported { what });
    }
    if usize::from(u16_at(&header, PROGRAM_HEADER_SIZE)) != PROGRAM_HEADER_BYTES {
        return damaged("its ELF program headers have a wrong size");
    }
    let count = u16_at(&header, PROGRAM_HEADER_COUNT);
    if count == 0 || count > MAX_SEGMENTS {
        return damaged("its number of ELF program headers is absurd");
    }
    let offset = u64_at(&header, PROGRAM_HEADERS);
    let mut table = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    within("the ELF program header table", offset, table.len() as u64, len)?;
    if offset < HEADER_BYTES as u64 {
        return damaged("its ELF program header table overlaps the ELF header");
    }
    image.read_at(offset, &mut table).map_err(read)?;

    let mut loaded = Vec::new();
    for segment in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        if let Some(range) = check_segment(segment, len, ram_end)? {
            loaded.push(range);
        }
    }
    if loaded.is_empty() {
        return damaged("no ELF segment is to be loaded");
    }
    Ok((loaded, u64_at(&header, ENTRY)))
}

/// The physical range of a segment to be loaded, `None` for others.
fn check_segment(segment: &[u8], len: u64, ram_end: u64) -> Result<Option<Range<u64>>, KernelError> {
    let [offset, physical, file_bytes, memory_bytes] = [8, 24, 32, 40].map(|at| u64_at(segment, at));
    match u32_at(segment, 0) {
        SEGMENT_LOAD => {
            within("an ELF segment", offset, file_bytes, len)?;
            if file_bytes > memory_bytes {
                let what = "an ELF segment is longer in the file than in memory";
                return Err(KernelError::Damaged { what });
            }
            let end = physical.checked_add(memory_bytes).ok_or(KernelError::Damaged {
                what: "an ELF segment wraps around the address space",
            })?;
            if memory_bytes == 0 {
                return Ok(None);
            }
            check_room(physical, end, ram_end)?;
            Ok(Some(physical..end))
        }
        SEGMENT_NOTE => {
            within("an ELF note segment", offset, file_bytes, len)?;
            if file_bytes > MAX_NOTE_BYTES {
                let what = "its ELF notes are absurdly long";
                return Err(KernelError::Damaged { what });
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn within(what: &'static str, offset: u64, bytes: u64, len: u64) -> Result<(), KernelError> {
    match offset.checked_add(bytes) {
        Some(end) if end <= len => Ok(()),
        _ => Err(truncated(what, offset, bytes, len)),
    }
}

fn truncated(what: &'static str, offset: u64, bytes: u64, len: u64) -> KernelError {
    let end = offset.saturating_add(bytes);
    KernelError::Truncated { what, end, len }
}

/// Loads the ELF file `image`, which `reader` reads too.
pub(super) fn load<R>(
    memory: &GuestMemory,
    image: &dyn Image,
    reader: &mut R,
    ram_end: u64,
) -> Result<Kernel, KernelError>
where
    R: Read + ReadVolatile + Seek,
{
    let (loaded, elf_entry) = check(image, ram_end)?;
    let result = Elf::load(memory.inner(), None, reader, None).map_err(|source| KernelError::Load { source })?;
    let protocol = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => {
            let what = "its PVH entry is not a 32-bit address";
            Protocol::Pvh(u32::try_from(address.0).map_err(|_| KernelError::Damaged { what })?)
        }
        _ => Protocol::Linux64(elf_entry),
    };
    let entry = match protocol {
        Protocol::Pvh(address) => u64::from(address),
        Protocol::Linux64(address) => address,
    };
    if !loaded.iter().any(|range| range.contains(&entry)) {
        let what = "its entry point lies outside of what is loaded";
        return Err(KernelError::Damaged { what });
    }
    Ok(Kernel {
        protocol,
        end: loaded.iter().map(|range| range.end).max().unwrap_or(0),
        header: None,
    })
}
