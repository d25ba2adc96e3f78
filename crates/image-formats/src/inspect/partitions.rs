//! Partition tables at the start of a disk: enough to tell that there is one, and to believe it.

use crate::fields::{le32, le64};

/// Where the signature of a master boot record is, bytes (UEFI specification, "Legacy MBR").
const MBR_SIGNATURE: usize = 510;
/// Where its four entries are, bytes, and how long one is.
const MBR_ENTRIES: (usize, usize) = (446, 16);
/// Type of the one partition that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xee;
/// Sector sizes a GPT's header is looked for with: it is in the second sector.
const SECTORS: [usize; 2] = [512, 4096];
/// Shortest GPT header, bytes (UEFI specification, "GPT Header").
const GPT_HEADER_BYTES: usize = 92;

/// Which partition table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partitions {
    /// A master boot record with at least one partition.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// The table at the start of a disk; `None` when no program would find partitions there.
pub(super) fn of(start: &[u8]) -> Option<Partitions> {
    if SECTORS
        .iter()
        .any(|&sector| is_gpt(start.get(sector..).unwrap_or_default()))
    {
        return Some(Partitions::Gpt);
    }
    let entries = mbr_entries(start)?;
    let used = |entry: &&&[u8]| {
        // Type and length: a partition has both.
        entry.get(4).is_some_and(|&kind| kind != 0) && le32(entry, 12).is_some_and(|sectors| sectors > 0)
    };
    let sane = entries
        .iter()
        .all(|entry| entry.first().is_some_and(|flag| matches!(flag, 0 | 0x80)));
    let first = sane.then(|| entries.iter().find(used)).flatten()?;
    // The table a protective entry speaks of is damaged or gone; its second copy may be at the end.
    let protective = first.get(4) == Some(&PROTECTIVE);
    Some(if protective { Partitions::Gpt } else { Partitions::Mbr })
}

/// Whether firmware would take the first sector for a boot record, whatever is in its table.
pub(super) fn is_bootable(start: &[u8]) -> bool {
    start.get(MBR_SIGNATURE..MBR_SIGNATURE + 2) == Some(&[0x55, 0xaa])
}

fn mbr_entries(start: &[u8]) -> Option<Vec<&[u8]>> {
    if !is_bootable(start) {
        return None;
    }
    let (at, len) = MBR_ENTRIES;
    Some(start.get(at..at + 4 * len)?.chunks_exact(len).collect())
}

/// A header is believed with its checksum, and where it says it is: in sector 1.
fn is_gpt(sector: &[u8]) -> bool {
    let Some(len) = le32(sector, 12).and_then(|len| usize::try_from(len).ok()) else {
        return false;
    };
    let header = (GPT_HEADER_BYTES..=512)
        .contains(&len)
        .then(|| sector.get(..len))
        .flatten();
    let Some(header) = header.filter(|header| header.starts_with(b"EFI PART")) else {
        return false;
    };
    let mut crc = flate2::Crc::new();
    for (part, zeroed) in [(0..16, false), (16..20, true), (20..len, false)] {
        match header.get(part) {
            Some(_) if zeroed => crc.update(&[0; 4]),
            Some(bytes) => crc.update(bytes),
            None => return false,
        }
    }
    le32(header, 16) == Some(crc.sum()) && le64(header, 24) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mbr(kind: u8, flag: u8, sectors: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[446] = flag;
        bytes[450] = kind;
        bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
        bytes
    }

    #[test]
    fn a_boot_record_counts_with_a_partition_only() {
        assert_eq!(of(&with_mbr(0x83, 0x80, 9)), Some(Partitions::Mbr));
        assert_eq!(of(&with_mbr(0xee, 0, 9)), Some(Partitions::Gpt));
        assert_eq!(of(&with_mbr(0, 0, 9)), None);
        assert_eq!(of(&with_mbr(0x83, 7, 9)), None, "a boot sector's code");
        assert_eq!(of(&with_mbr(0x83, 0, 0)), None);
        assert_eq!(of(&with_mbr(0x83, 0, 9)[..511]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_gpt_counts_with_its_checksum() {
        for sector in [512, 4096] {
            let mut bytes = vec![0; 8192];
            bytes[sector..sector + 8].copy_from_slice(b"EFI PART");
            bytes[sector + 12] = 92;
            bytes[sector + 24] = 1;
            assert_eq!(of(&bytes), None);
            let mut crc = flate2::Crc::new();
            crc.update(&bytes[sector..sector + 92]);
            bytes[sector + 16..sector + 20].copy_from_slice(&crc.sum().to_le_bytes());
            assert_eq!(of(&bytes), Some(Partitions::Gpt));
        }
    }
}
