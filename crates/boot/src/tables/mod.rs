//! The tables that describe a machine to its guest: ACPI and SMBIOS.

mod acpi;
mod dsdt;
mod oem;
mod smbios;

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout;
use crate::platform::Platform;

/// Why tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// They are larger than their place.
    #[error("{what} tables of {bytes} bytes exceed their {room} bytes of guest memory: use fewer vCPUs")]
    NoRoom {
        /// Which tables.
        what: &'static str,
        /// Their length, bytes.
        bytes: usize,
        /// What there is, bytes.
        room: u64,
    },
    /// Guest RAM could not be written; it is smaller than the first MiB.
    #[error("{what} tables cannot be written into guest memory: give the machine more memory")]
    Memory {
        /// Which tables.
        what: &'static str,
        /// What the write met.
        #[source]
        source: GuestMemoryError,
    },
}

/// Writes all tables of `platform` to their places.
pub(crate) fn write(memory: &GuestMemory, platform: &Platform) -> Result<(), TablesError> {
    let acpi = acpi::build(platform, layout::ACPI_TABLES);
    put(
        memory,
        "ACPI",
        &acpi.tables,
        layout::ACPI_TABLES,
        layout::ACPI_TABLES_END,
    )?;
    put(memory, "ACPI", &acpi.rsdp, layout::RSDP, layout::ACPI_TABLES)?;
    write_generation(memory, platform.generation)?;
    let smbios = smbios::build(platform, layout::SMBIOS, memory.ram_bytes());
    put(memory, "SMBIOS", &smbios, layout::SMBIOS, layout::SMBIOS_END)
}

/// Puts another generation id where the tables say that it is. The guest looks there when it is told.
///
/// # Errors
/// Guest RAM can not be written.
pub fn write_generation(memory: &GuestMemory, generation: [u8; 16]) -> Result<(), TablesError> {
    let end = layout::GENERATION_ID + generation.len() as u64;
    put(memory, "generation", &generation, layout::GENERATION_ID, end)
}

fn put(memory: &GuestMemory, what: &'static str, bytes: &[u8], start: u64, end: u64) -> Result<(), TablesError> {
    let room = end - start;
    if bytes.len() as u64 > room {
        let bytes = bytes.len();
        return Err(TablesError::NoRoom { what, bytes, room });
    }
    memory
        .write_slice(bytes, GuestAddress(start))
        .map_err(|source| TablesError::Memory { what, source })
}
