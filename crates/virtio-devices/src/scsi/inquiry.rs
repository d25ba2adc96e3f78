//! INQUIRY: what a unit is (SPC-4 §6.6, §7.8; SBC-3 §6.6).

use super::config::{Medium, TRANSFER_BYTES_MAX};
use super::sense::Sense;
use super::unit::Unit;

/// T10 vendor identification, padded.
const VENDOR: &[u8; 8] = b"KARAT   ";
/// Product revision level.
const REVISION: &[u8; 4] = b"0001";
/// Peripheral device types (SPC-4 table 188).
const DISK: u8 = 0x00;
const CD_ROM: u8 = 0x05;
const WELL_KNOWN: u8 = 0x1e;
/// Peripheral qualifier and type: there can be no unit here.
const NOBODY: u8 = 0x7f;
/// SPC-4.
const VERSION: u8 = 0x06;
/// Version descriptors (SPC-4 annex E): SAM-5, SPC-4, SBC-3.
const STANDARDS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];
/// Bytes of the answer: all up to the reserved fields behind the version descriptors.
const SIZE: usize = 74;

/// Most descriptors in one UNMAP, by choice: as many as fit a page with their header.
pub(super) const UNMAP_DESCRIPTORS_MAX: u32 = 255;
/// Longest range of one UNMAP and one WRITE SAME, bytes: 1 GiB, so that none takes the store for ever.
pub(super) const RANGE_BYTES_MAX: u64 = 1 << 30;

/// Whom the guest asks.
pub(super) enum Subject<'a> {
    Unit(&'a Unit),
    WellKnown,
    /// A target that exists has no such unit.
    Nobody,
}

impl Subject<'_> {
    const fn kind(&self) -> u8 {
        match self {
            Self::Unit(unit) => kind_of(unit.medium),
            Self::WellKnown => WELL_KNOWN,
            Self::Nobody => NOBODY,
        }
    }
}

const fn kind_of(medium: Medium) -> u8 {
    match medium {
        Medium::Disk => DISK,
        Medium::CdRom => CD_ROM,
    }
}

/// Standard INQUIRY data.
pub(super) fn standard(subject: &Subject<'_>) -> Vec<u8> {
    let (product, removable): (&[u8; 16], u8) = match subject {
        Subject::Unit(unit) if unit.medium == Medium::CdRom => (b"VIRTUAL CD-ROM  ", 0x80),
        Subject::Unit(_) => (b"VIRTUAL DISK    ", 0),
        Subject::WellKnown | Subject::Nobody => (b"VIRTUAL TARGET  ", 0),
    };
    // Hierarchical addressing and this very format; command queuing.
    let mut data = vec![subject.kind(), removable, VERSION, 0x12, 0, 0, 0, 0x02];
    data.extend(VENDOR);
    data.extend(product);
    data.extend(REVISION);
    data.resize(58, 0);
    data.extend(STANDARDS.iter().flat_map(|standard| standard.to_be_bytes()));
    data.resize(SIZE, 0);
    // ADDITIONAL LENGTH: what follows it.
    if let Some(length) = data.get_mut(4) {
        *length = u8::try_from(SIZE - 5).unwrap_or(0);
    }
    data
}

/// A page of vital product data.
pub(super) fn vital(subject: &Subject<'_>, page: u8) -> Result<Vec<u8>, Sense> {
    let body = match (subject, page) {
        (Subject::Unit(unit), page) => of_unit(unit, page),
        (Subject::WellKnown, 0x00) => Some(vec![0x00]),
        _ => None,
    };
    let body = body.ok_or(Sense::bad_field(2, None))?;
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    Ok([&[subject.kind(), page], &length[..], &body].concat())
}

fn of_unit(unit: &Unit, page: u8) -> Option<Vec<u8>> {
    let is_disk = unit.medium == Medium::Disk;
    match page {
        0x00 => {
            let pages = [
                (0x00, true),
                (0x80, !unit.serial.is_empty()),
                (0x83, true),
                (0xb0, is_disk),
                (0xb1, is_disk),
                (0xb2, is_disk),
            ];
            Some(pages.iter().filter(|page| page.1).map(|page| page.0).collect())
        }
        0x80 if !unit.serial.is_empty() => Some(unit.serial.clone().into_bytes()),
        0x83 => Some(identification(unit)),
        0xb0 if is_disk => Some(limits(unit)),
        0xb1 if is_disk => Some(characteristics()),
        0xb2 if is_disk => Some(provisioning(unit)),
        _ => None,
    }
}

/// Device Identification: a name by vendor, and a number where there is a serial number to make it from.
fn identification(unit: &Unit) -> Vec<u8> {
    let name = unit.identity.as_bytes();
    let length = u8::try_from(VENDOR.len() + name.len()).unwrap_or(u8::MAX);
    // ASCII; of the unit, T10 vendor ID based.
    let mut data = vec![0x02, 0x01, 0, length];
    data.extend(VENDOR);
    data.extend(name);
    if !unit.serial.is_empty() {
        // Binary; of the unit, NAA.
        data.extend([0x01, 0x03, 0, 8]);
        data.extend(locally_assigned(&unit.serial).to_be_bytes());
    }
    data
}

/// NAA 3h, "locally assigned" (SPC-4 §7.8.6.6.4), and 60 bits of FNV-1a of the serial number. Guests write it down: never
/// to be changed.
fn locally_assigned(serial: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = serial
        .bytes()
        .fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    (hash ^ hash >> 60) & 0x0fff_ffff_ffff_ffff | 3 << 60
}

/// Blocks in `bytes`, at least one, as far as 32 bits go.
fn blocks_in(bytes: u64, unit: &Unit) -> u32 {
    let blocks = bytes / u64::from(unit.block_bytes().max(1));
    u32::try_from(blocks).unwrap_or(u32::MAX).max(1)
}

/// Block Limits (SBC-3 §6.6.3).
fn limits(unit: &Unit) -> Vec<u8> {
    let granularity = unit.unmap_granularity();
    let when = |value: u32| granularity.map_or(0, |_| value);
    let longest = blocks_in(RANGE_BYTES_MAX, unit);
    let same = if unit.is_writable() { u64::from(longest) } else { 0 };
    let physical = 1_u16.checked_shl(unit.physical_exponent()).unwrap_or(0);
    // WRITE SAME of no blocks is an error; COMPARE AND WRITE is not here.
    let mut data = vec![0x01, 0x00];
    data.extend(physical.to_be_bytes());
    data.extend(blocks_in(TRANSFER_BYTES_MAX, unit).to_be_bytes());
    // No optimal transfer length, no prefetch.
    data.extend([0; 8]);
    data.extend(when(longest).to_be_bytes());
    data.extend(when(UNMAP_DESCRIPTORS_MAX).to_be_bytes());
    data.extend(granularity.unwrap_or(0).to_be_bytes());
    // UGAVALID: the first block is aligned.
    data.extend(when(1 << 31).to_be_bytes());
    data.extend(same.to_be_bytes());
    data.resize(60, 0);
    data
}

/// Block Device Characteristics (SBC-3 §6.6.2): nothing rotates.
fn characteristics() -> Vec<u8> {
    let mut data = vec![0, 1];
    data.resize(60, 0);
    data
}

/// Logical Block Provisioning (SBC-3 §6.6.4): thin where space is given back, by all three commands. What was unmapped need
/// not read as zeroes: [`disk::DiskIo::discard`] promises none.
fn provisioning(unit: &Unit) -> Vec<u8> {
    match unit.unmap_granularity() {
        Some(_) => vec![0, 0xe0, 0x02, 0],
        None => vec![0; 4],
    }
}
