//! What a guest starts with: kernel, initial RAM disk, command line, ACPI and SMBIOS tables, memory map, entry state.
//!
//! [`prepare`] writes all of it into fresh (zeroed) guest RAM and says how the boot CPU must be entered. Images come as open
//! files, and their content decides what they are. Nothing here knows of KVM, and no register is set here.
//!
//! Images are not trusted: every offset and length in them is checked before use, and no allocation is larger than the file
//! or, for a compressed kernel, than the memory its header asks for and the guest has.

mod entry;
mod image;
mod initrd;
mod kernel;
pub mod layout;
mod memory_map;
mod platform;
mod reset_vector;
mod tables;

use std::fs::File;

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

pub use entry::Entry;
pub use initrd::InitrdError;
pub use kernel::KernelError;
pub use platform::{Platform, RegisterValues};
pub use tables::{TablesError, write_generation};

/// What the operator wants booted.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// ELF vmlinux or bzImage.
    pub kernel: &'a File,
    /// Initial RAM disk, if the kernel needs one.
    pub initrd: Option<&'a File>,
    /// Kernel command line, without NUL.
    pub command_line: &'a str,
}

/// Why a machine's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initial RAM disk was refused.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The tables do not fit.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The command line is longer than the kernel reads.
    #[error("kernel command line has {bytes} bytes, this kernel takes at most {limit}")]
    CommandLineTooLong {
        /// Its length, bytes.
        bytes: usize,
        /// The most this kernel takes, bytes.
        limit: usize,
    },
    /// The command line holds a NUL, behind which the kernel would not look.
    #[error("kernel command line contains a NUL character")]
    CommandLineNul,
    /// Boot structures could not be written; RAM is smaller than the first MiB.
    #[error("boot structures cannot be written into guest memory: give the machine more memory")]
    Memory {
        /// What the write met.
        #[source]
        source: GuestMemoryError,
    },
}

/// Command line limit of Linux on x86 (`COMMAND_LINE_SIZE` less its NUL), for kernels that do not say theirs, bytes.
const COMMAND_LINE_DEFAULT: usize = 2047;
/// Highest address + 1 for the initial RAM disk of a kernel that does not say (Linux's own `initrd_addr_max` is 2 GiB - 1).
const INITRD_LIMIT_DEFAULT: u64 = 0x8000_0000;

/// Writes all that `payload` needs to start into `memory`, which must be zeroed, as described by `platform`.
pub fn prepare(memory: &GuestMemory, platform: &Platform, payload: Payload<'_>) -> Result<Entry, BootError> {
    let ram_bytes = memory.ram_bytes();
    let ram_end = ram_bytes.min(guestmem::layout::LOW_RAM_END);
    let kernel = kernel::load(memory, payload.kernel, ram_end)?;
    let header = kernel.header;
    write_command_line(
        memory,
        payload.command_line,
        header.map_or(0, |header| header.cmdline_size),
    )?;
    let limit = match header.map_or(0, |header| u64::from(header.initrd_addr_max)) {
        0 => INITRD_LIMIT_DEFAULT,
        highest => highest + 1,
    };
    let initrd = payload
        .initrd
        .map(|file| initrd::load(memory, file, kernel.end, limit.min(ram_end)))
        .transpose()?;
    tables::write(memory, platform)?;
    reset_vector::write(memory, platform).map_err(|source| BootError::Memory { source })?;
    let memory_map = memory_map::entries(ram_bytes);
    let facts = entry::Facts {
        command_line: u32::try_from(layout::COMMAND_LINE).unwrap_or(0),
        rsdp: layout::RSDP,
        initrd,
        memory_map: &memory_map,
    };
    match kernel.protocol {
        kernel::Protocol::Pvh(rip) => entry::write_pvh(memory, rip, &facts),
        kernel::Protocol::Linux64(rip) => entry::write_linux64(memory, rip, header, &facts),
    }
    .map_err(|source| BootError::Memory { source })
}

fn write_command_line(memory: &GuestMemory, line: &str, kernel_limit: u32) -> Result<(), BootError> {
    let limit = match usize::try_from(kernel_limit) {
        Ok(0) | Err(_) => COMMAND_LINE_DEFAULT,
        Ok(limit) => limit.min(layout::COMMAND_LINE_BYTES - 1),
    };
    if line.len() > limit {
        let bytes = line.len();
        return Err(BootError::CommandLineTooLong { bytes, limit });
    }
    if line.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))
        .map_err(|source| BootError::Memory { source })
}

#[cfg(test)]
mod tests;
