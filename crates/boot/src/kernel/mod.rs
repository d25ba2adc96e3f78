//! Kernels: what kind of image it is, and its way into guest RAM.
//!
//! ```text
//!   ELF ─────────────────────────────────┐
//!   bzImage ── known compression ──▶ ELF ┴─ PVH note ──▶ PVH entry
//!        │                               └─ none ──────▶ 64-bit entry
//!        └──── other ── as it is ────────────────────▶ 64-bit entry, the guest decompresses
//! ```
//!
//! Decompressing on the host takes a fraction of what the guest's own decompressor takes, and skips its relocation.

mod bzimage;
mod elf;
mod payload;

use std::fs::File;
use std::io;

use guestmem::GuestMemory;
use linux_loader::loader::bootparam::setup_header;

use crate::image::Image;

/// Why a kernel was refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file could not be read.
    #[error("kernel image cannot be read")]
    Read {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error("kernel is neither an ELF file (vmlinux) nor a bzImage: it begins with {first_bytes}")]
    Unknown {
        /// The first bytes of the file, as hexadecimal text.
        first_bytes: String,
    },
    /// The file ends before something its headers name.
    #[error("kernel image is truncated: {what} ends at byte {end}, the file at {len}")]
    Truncated {
        /// What lies past the end.
        what: &'static str,
        /// Where it would end, bytes.
        end: u64,
        /// Length of the file, bytes.
        len: u64,
    },
    /// A header contradicts itself or the format.
    #[error("kernel image is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// A valid image of a kind this machine cannot boot.
    #[error("kernel image cannot be booted: {what}")]
    Unsupported {
        /// What is missing or different.
        what: &'static str,
    },
    /// The kernel wants memory that the machine does not have.
    #[error(
        "kernel needs guest memory {start:#x} to {end:#x}, but RAM for kernels reaches from {ram_start:#x} to \
         {ram_end:#x}: give the machine more memory"
    )]
    NoRoom {
        /// First address wanted.
        start: u64,
        /// First address no longer wanted.
        end: u64,
        /// First address a kernel may use.
        ram_start: u64,
        /// First address behind low RAM.
        ram_end: u64,
    },
    /// The compressed kernel in a bzImage does not decompress.
    #[error("the {format} compressed kernel in the bzImage is damaged: {reason}")]
    Payload {
        /// Name of the compression.
        format: &'static str,
        /// What the decompressor found.
        reason: String,
    },
    /// Copying into guest memory failed although all was checked.
    #[error("kernel cannot be loaded into guest memory")]
    Load {
        /// What the loader said.
        #[source]
        source: linux_loader::loader::Error,
    },
}

/// How a loaded kernel wants to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// PVH, 32-bit, at this address.
    Pvh(u32),
    /// The 64-bit boot protocol, at this address.
    Linux64(u64),
}

/// A kernel in guest RAM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) protocol: Protocol,
    /// First address that the kernel, with its zeroed data and scratch space, leaves alone.
    pub(crate) end: u64,
    /// Set-up header of the bzImage it came from.
    pub(crate) header: Option<setup_header>,
}

/// Bytes looked at to tell what an image is; a bzImage has its magic at 0x202.
const PROBE_BYTES: u64 = 0x206;

/// Loads `file` below `ram_end`, the end of low RAM.
pub(crate) fn load(memory: &GuestMemory, file: &File, ram_end: u64) -> Result<Kernel, KernelError> {
    let read = |source| KernelError::Read { source };
    let len = Image::len(file).map_err(read)?;
    let mut head = vec![0; usize::try_from(len.min(PROBE_BYTES)).unwrap_or(0)];
    file.read_at(0, &mut head).map_err(read)?;
    if head.starts_with(&elf::MAGIC) {
        let mut reader = file.try_clone().map_err(read)?;
        elf::load(memory, file, &mut reader, ram_end)
    } else if bzimage::is_bzimage(&head) {
        bzimage::load(memory, file, len, ram_end)
    } else {
        Err(unknown(&head))
    }
}

fn unknown(head: &[u8]) -> KernelError {
    let first: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    KernelError::Unknown {
        first_bytes: if first.is_empty() {
            "nothing, it is empty".into()
        } else {
            first.join(" ")
        },
    }
}

/// Refuses `start..end` when kernels may not lie there.
fn check_room(start: u64, end: u64, ram_end: u64) -> Result<(), KernelError> {
    let ram_start = crate::layout::HIGH_MEMORY;
    if start < ram_start || end > ram_end || end < start {
        return Err(KernelError::NoRoom {
            start,
            end,
            ram_start,
            ram_end,
        });
    }
    Ok(())
}
