//! Hyper-V disks (MS-VHDX): region table, then the metadata region with the two items an import needs.

use disk::probe::Format;

use super::Refusal;
use super::found::{Need, Settled};
use crate::fields::{array, le16, le32, le64};

/// The first region table (MS-VHDX §2.2.3).
pub(super) const REGION_TABLE: Need = Need {
    at: 192 << 10,
    len: 64 << 10,
};
/// How much of the metadata region is looked at, bytes: the table and the items right behind it.
const METADATA_BYTES: usize = 128 << 10;
/// Length of the metadata table, bytes (§2.6.1).
const METADATA_TABLE_BYTES: usize = 64 << 10;
/// Most entries of a region table (§2.2.3.1) and of a metadata table (§2.6.1).
const ENTRIES_MAX: usize = 2047;
/// Regions and items as they are stored: GUIDs with their first three parts little-endian.
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const VIRTUAL_DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
/// Bit of the file parameters: the disk has a parent (§2.6.2.1).
const HAS_PARENT: u32 = 1 << 1;
/// Largest disk, bytes: 64 TiB (§2.6.2.2).
const SIZE_MAX: u64 = 64 << 40;
/// Regions lie at multiples of this, bytes (§2.2).
const REGION_UNIT: u64 = 1 << 20;

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// The regions of a disk, as far as they matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Regions {
    /// The part of the metadata region to be read.
    pub(super) metadata: Need,
    /// The farthest end of a region, bytes.
    end: u64,
}

fn damaged(what: impl Into<String>) -> Refusal {
    Refusal::damaged(Format::Vhdx, what)
}

/// Reads the region table.
pub(super) fn regions(table: &[u8]) -> Result<Regions, Refusal> {
    if !table.starts_with(b"regi") {
        return Err(damaged("its region table is missing"));
    }
    let count = le32(table, 8)
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(usize::MAX);
    if count > ENTRIES_MAX {
        return Err(damaged("its region table has more entries than fit"));
    }
    let entries = table
        .get(16..16 + count * 32)
        .ok_or_else(|| damaged("its region table is cut"))?;
    let (mut metadata, mut end) = (None, 0_u64);
    for entry in entries.chunks_exact(32) {
        let (Some(kind), Some(at), Some(len)) = (array::<16>(entry, 0), le64(entry, 16), le32(entry, 24)) else {
            continue;
        };
        if at < REGION_UNIT || !at.is_multiple_of(REGION_UNIT) {
            return Err(damaged(format!("a region begins at byte {at}")));
        }
        end = end.max(at.saturating_add(len.into()));
        if kind == METADATA_REGION {
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(METADATA_BYTES);
            if len < METADATA_TABLE_BYTES {
                return Err(damaged("its metadata region is shorter than its table"));
            }
            metadata = Some(Need { at, len });
        }
    }
    let metadata = metadata.ok_or_else(|| damaged("it has no metadata region"))?;
    Ok(Regions { metadata, end })
}

/// Reads the metadata region.
pub(super) fn judge(regions: Regions, region: &[u8]) -> Result<Settled, Refusal> {
    if !region.starts_with(b"metadata") {
        return Err(damaged("its metadata table is missing"));
    }
    let parameters = item(region, FILE_PARAMETERS, 8)?;
    let size = item(region, VIRTUAL_DISK_SIZE, 8)?;
    if le32(parameters, 4).is_some_and(|flags| flags & HAS_PARENT != 0) {
        return Err(Refusal::Parent(Format::Vhdx));
    }
    let size_bytes = le64(size, 0).unwrap_or(0);
    if size_bytes == 0 || size_bytes > SIZE_MAX {
        return Err(damaged(format!("its size is {size_bytes} bytes")));
    }
    Ok(Settled {
        format: Format::Vhdx,
        virtual_size_bytes: Some(size_bytes),
        least_bytes: regions.end,
    })
}

fn item(region: &[u8], wanted: [u8; 16], least: usize) -> Result<&[u8], Refusal> {
    let count = usize::from(le16(region, 10).unwrap_or(0));
    let entries = region.get(32..32 + count.min(ENTRIES_MAX) * 32).unwrap_or_default();
    let mut all = entries.chunks_exact(32).filter(|entry| array(entry, 0) == Some(wanted));
    let entry = all.next().ok_or_else(|| damaged("a metadata item is missing"))?;
    if all.next().is_some() {
        return Err(damaged("a metadata item is there twice"));
    }
    let at = le32(entry, 16)
        .and_then(|at| usize::try_from(at).ok())
        .unwrap_or(usize::MAX);
    let end = at
        .checked_add(least)
        .ok_or_else(|| damaged("a metadata item is out of reach"))?;
    region
        .get(at..end)
        .ok_or_else(|| damaged("a metadata item is out of reach"))
}
