//! SMBIOS 3.x entry point and the structures that tools ask for: firmware, system, chassis, memory array, end.

use crate::layout;
use crate::platform::Platform;

/// SMBIOS version: major, minor, document revision (DSP0134 3.2.0).
const VERSION: [u8; 3] = [3, 2, 0];
/// Length of the 64-bit entry point (DSP0134 §5.2.2), bytes.
const ENTRY_BYTES: u8 = 24;
/// Where the structures begin, from the entry point, bytes.
const STRUCTURES: u64 = 32;

const VENDOR: &str = "Karat";
const PRODUCT: &str = "Karat virtual machine";
/// Version of the machine as guests see it; not that of the program, which changes under a guest that migrates.
const MACHINE_VERSION: &str = "1";

/// Structures one behind the other, with handles counted from 0.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    next_handle: u16,
}

impl Structures {
    /// Adds a structure of type `kind` with the formatted `fields` behind its header; strings are numbered from 1.
    fn add(&mut self, kind: u8, fields: &[&[u8]], strings: &[&str]) {
        let fields = fields.concat();
        let length = u8::try_from(fields.len() + 4).unwrap_or(u8::MAX);
        self.bytes.extend([kind, length]);
        self.bytes.extend(self.next_handle.to_le_bytes());
        self.bytes.extend(fields);
        for string in strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.next_handle += 1;
    }
}

/// Entry point to lie at `base`, and what it points to.
pub(super) fn build(platform: &Platform, base: u64, ram_bytes: u64) -> Vec<u8> {
    let structures = structures(platform, ram_bytes);
    let mut entry = b"_SM3_".to_vec();
    entry.extend([0, ENTRY_BYTES]);
    entry.extend(VERSION);
    entry.extend([1, 0]);
    entry.extend(u32::try_from(structures.len()).unwrap_or(u32::MAX).to_le_bytes());
    entry.extend((base + STRUCTURES).to_le_bytes());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    entry.resize(usize::try_from(STRUCTURES).unwrap_or(0), 0);
    entry.extend(structures);
    entry
}

fn structures(platform: &Platform, ram_bytes: u64) -> Vec<u8> {
    let mut structures = Structures::default();
    // Type 0, firmware: vendor, version, segment, date, size; characteristics "not supported" but virtual machine.
    let segment = u16::try_from(layout::SMBIOS >> 4).unwrap_or(0).to_le_bytes();
    let unsupported = (1_u64 << 3).to_le_bytes();
    structures.add(
        0,
        &[
            &[1, 2],
            &segment,
            &[3, 0],
            &unsupported,
            &[0, 0x10 | 0x04, 1, 0, 0xff, 0xff],
        ],
        &[VENDOR, MACHINE_VERSION, "01/01/2026"],
    );
    // Type 1, system: maker, product, version, serial number, UUID, wake-up by power switch, SKU, family.
    let uuid_text = platform.uuid.map(|byte| format!("{byte:02x}")).concat();
    structures.add(
        1,
        &[&[1, 2, 3, 4], &mixed_endian(platform.uuid), &[6, 0, 0]],
        &[VENDOR, PRODUCT, MACHINE_VERSION, &uuid_text],
    );
    // Type 3, chassis: maker, kind "other", version, serial, asset; states safe; no heights, cords or elements.
    structures.add(3, &[&[1, 1, 0, 0, 0, 3, 3, 3, 2], &[0; 4], &[0, 0, 0, 3, 0]], &[VENDOR]);
    // Type 16, memory array: on the board, system memory, multi-bit ECC, extended capacity in bytes, one device.
    let extended = 0x8000_0000_u32.to_le_bytes();
    structures.add(
        16,
        &[&[3, 3, 6], &extended, &[0xfe, 0xff, 1, 0], &ram_bytes.to_le_bytes()],
        &[],
    );
    structures.add(127, &[], &[]);
    structures.bytes
}

/// UUIDs in SMBIOS have their first three fields little-endian (DSP0134 §7.2.1).
fn mixed_endian(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::platform;

    #[test]
    fn entry_point_and_structures_are_consistent() {
        let bytes = build(&platform(1), layout::SMBIOS, 1 << 30);
        assert_eq!(&bytes[..5], b"_SM3_");
        assert_eq!(bytes[..24].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        let address = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
        let mut at = usize::try_from(address - layout::SMBIOS).unwrap();
        let mut kinds = vec![];
        while at < bytes.len() {
            let (kind, length) = (bytes[at], usize::from(bytes[at + 1]));
            assert_eq!(
                u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]),
                u16::try_from(kinds.len()).unwrap()
            );
            kinds.push((kind, length));
            at += length;
            while bytes[at..at + 2] != [0, 0] {
                at += 1;
            }
            at += 2;
        }
        assert_eq!(kinds, [(0, 0x18), (1, 0x1b), (3, 0x16), (16, 0x17), (127, 4)]);
    }

    #[test]
    fn uuid_is_mixed_endian() {
        let uuid = [
            0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ];
        let expected = [
            0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ];
        assert_eq!(mixed_endian(uuid), expected);
    }
}
