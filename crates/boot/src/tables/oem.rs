//! What the header of every ACPI table says about its maker (ACPI 6.5 §5.2.6).

/// Who made the machine.
pub(super) const OEM: [u8; 6] = *b"KARAT ";
/// Which machine it is.
pub(super) const OEM_TABLE: [u8; 8] = *b"KARATVM ";
/// Revision of the tables.
pub(super) const OEM_REVISION: u32 = 1;
