//! The marks of the formats, and what has to stand beside them.

use super::{Format, Packing};

/// Size of the structure at the start of each disk format that its mark is believed with, bytes: a file that ends before is none.
const LEAST_BYTES: u64 = 64;

/// First volume descriptor (ECMA-119 §8.1): sector 16 of 2048 bytes; one byte of type, then the mark and version 1.
const ISO_MARK: (usize, &[u8]) = (32_769, b"CD001\x01");

/// Where a VDI says what it is, bytes (VirtualBox, VDICore.h): 64 bytes of text come first.
const VDI_MARK: (usize, &[u8]) = (64, &[0x7f, 0x10, 0xda, 0xbe]);

/// Where a tape archive says what it is, bytes (POSIX ustar).
const TAR_MARK: (usize, &[u8]) = (257, b"ustar");

/// Where the checksum is in the footer of a VHD (VHD specification, "Hard Disk Footer Format").
const VHD_CHECKSUM: usize = 64;

/// What an image of `size_bytes` is that begins and ends so.
pub(super) fn format(start: &[u8], end: &[u8], size_bytes: u64) -> Format {
    if let Some(packing) = packing(start) {
        return Format::Packed(packing);
    }
    if size_bytes >= LEAST_BYTES
        && let Some(format) = disk_format(start)
    {
        return format;
    }
    // A dynamic VHD repeats its footer at the start; a fixed one has it at the end only, behind the disk.
    if is_vhd_footer(start) || is_vhd_footer(end) {
        return Format::Vhd;
    }
    if has(start, ISO_MARK) {
        return Format::Iso9660;
    }
    Format::Raw
}

fn has(start: &[u8], (at, mark): (usize, &[u8])) -> bool {
    start.get(at..at + mark.len()) == Some(mark)
}

fn disk_format(start: &[u8]) -> Option<Format> {
    let begins = |mark: &[u8]| start.starts_with(mark);
    let be32 = |at: usize| Some(u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?));
    let le32 = |at: usize| Some(u32::from_le_bytes(start.get(at..at + 4)?.try_into().ok()?));
    let be16 = |at: usize| Some(u16::from_be_bytes(start.get(at..at + 2)?.try_into().ok()?));
    if begins(b"QFI\xfb") {
        // Any other version is some later qcow2: its engine refuses it by number.
        return be32(4).map(|version| if version == 1 { Format::Qcow } else { Format::Qcow2 });
    }
    if begins(b"QED\0") {
        // Clusters of 4 KiB to 64 MiB (QEMU, qed_spec): a power of two.
        return le32(4)
            .filter(|cluster| cluster.is_power_of_two() && (1 << 12..=1 << 26).contains(cluster))
            .map(|_| Format::Qed);
    }
    if begins(b"KDMV") {
        return le32(4)
            .filter(|version| (1..=3).contains(version))
            .map(|_| Format::Vmdk);
    }
    if begins(b"COWD") || begins(b"# Disk DescriptorFile") {
        return Some(Format::Vmdk);
    }
    if begins(b"vhdxfile") {
        return Some(Format::Vhdx);
    }
    if begins(b"LUKS\xba\xbe") {
        return be16(6)
            .filter(|version| (1..=2).contains(version))
            .map(|_| Format::Luks);
    }
    if begins(b"WithoutFreeSpace") || begins(b"WithouFreSpacExt") {
        return Some(Format::Parallels);
    }
    (has(start, VDI_MARK)).then_some(Format::Vdi)
}

fn packing(start: &[u8]) -> Option<Packing> {
    let begins = |mark: &[u8]| start.starts_with(mark);
    // Deflate, and none of the reserved flags (RFC 1952 §2.3.1).
    if begins(b"\x1f\x8b\x08") && start.get(3).is_some_and(|flags| flags & 0xe0 == 0) {
        return Some(Packing::Gzip);
    }
    // A level, and the first block's or the end's mark.
    if begins(b"BZh") && start.get(3).is_some_and(|level| (b'1'..=b'9').contains(level)) {
        let block = start.get(4..10);
        let known = [&b"\x31\x41\x59\x26\x53\x59"[..], b"\x17\x72\x45\x38\x50\x90"];
        return known.iter().any(|mark| block == Some(mark)).then_some(Packing::Bzip2);
    }
    let marks: [(usize, &[u8], Packing); 5] = [
        (0, b"\xfd7zXZ\0", Packing::Xz),
        (0, b"\x28\xb5\x2f\xfd", Packing::Zstd),
        (0, b"\x04\x22\x4d\x18", Packing::Lz4),
        (0, b"PK\x03\x04", Packing::Zip),
        (TAR_MARK.0, TAR_MARK.1, Packing::Tar),
    ];
    let found = marks.iter().find(|(at, mark, _)| has(start, (*at, mark)))?;
    Some(found.2)
}

/// A footer is believed with its checksum: the complement of the sum of its bytes without that field's.
fn is_vhd_footer(bytes: &[u8]) -> bool {
    let Some(footer) = bytes.get(..512).filter(|footer| footer.starts_with(b"conectix")) else {
        return false;
    };
    let (mut sum, mut stored) = (0_u32, [0; 4]);
    for (index, &byte) in footer.iter().enumerate() {
        match stored.get_mut(index.wrapping_sub(VHD_CHECKSUM)) {
            Some(place) => *place = byte,
            None => sum += u32::from(byte),
        }
    }
    u32::from_be_bytes(stored) == !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    type Mark<'a> = (usize, &'a [u8]);

    fn filled(len: usize, marks: &[Mark<'_>]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, mark) in marks {
            bytes[*at..at + mark.len()].copy_from_slice(mark);
        }
        bytes
    }

    fn judged(bytes: &[u8]) -> Format {
        format(bytes, &bytes[bytes.len().saturating_sub(512)..], bytes.len() as u64)
    }

    #[test]
    fn marks_count_only_with_what_belongs_to_them() {
        let table: [(&[Mark<'_>], Format); 22] = [
            (&[], Format::Raw),
            (&[(0, b"QFI\xfb\0\0\0\x03")], Format::Qcow2),
            (&[(0, b"QFI\xfb\0\0\0\x01")], Format::Qcow),
            (&[(0, b"QFI\xfb\0\0\0\x09")], Format::Qcow2),
            (&[(512, b"QFI\xfb\0\0\0\x03")], Format::Raw),
            (&[(0, b"QED\0\0\0\x01\0")], Format::Qed),
            (&[(0, b"QED\0\0\0\0\0")], Format::Raw),
            (&[(0, b"KDMV\x01\0\0\0")], Format::Vmdk),
            (&[(0, b"KDMV\x77\0\0\0")], Format::Raw),
            (&[(0, b"# Disk DescriptorFile\n")], Format::Vmdk),
            (&[(0, b"vhdxfile")], Format::Vhdx),
            (&[(0, b"LUKS\xba\xbe\0\x02")], Format::Luks),
            (&[(0, b"LUKS\xba\xbe\0\x09")], Format::Raw),
            (&[VDI_MARK], Format::Vdi),
            (&[(0, b"conectix")], Format::Raw),
            (&[(0, b"\x1f\x8b\x08\0")], Format::Packed(Packing::Gzip)),
            (&[(0, b"\x1f\x8b\x08\xff")], Format::Raw),
            (&[(0, b"BZh91AY&SY")], Format::Packed(Packing::Bzip2)),
            (&[(0, b"BZhello")], Format::Raw),
            (&[(0, b"\x28\xb5\x2f\xfd")], Format::Packed(Packing::Zstd)),
            (&[TAR_MARK], Format::Packed(Packing::Tar)),
            (&[ISO_MARK], Format::Iso9660),
        ];
        for (marks, expected) in table {
            assert_eq!(judged(&filled(40_000, marks)), expected, "{marks:?}");
        }
        assert_eq!(judged(&[]), Format::Raw);
        assert_eq!(judged(b"QFI\xfb\0\0\0\x03"), Format::Raw, "too short for a header");
    }

    #[test]
    fn a_fixed_vhd_is_known_by_its_footer() {
        let mut bytes = filled(9000, &[(9000 - 512, b"conectix")]);
        assert_eq!(judged(&bytes), Format::Raw);
        let sum: u32 = b"conectix".iter().map(|&byte| u32::from(byte)).sum();
        bytes[9000 - 512 + 64..][..4].copy_from_slice(&(!sum).to_be_bytes());
        assert_eq!(judged(&bytes), Format::Vhd);
    }

    #[test]
    fn any_bytes_get_an_answer() {
        let mut bytes = crate::conformance::pattern(40_000, 9);
        for len in [0, 1, 3, 4, 7, 8, 63, 64, 260, 511, 512, 513, 32_770, 40_000] {
            for mark in [
                b"QFI\xfb".as_slice(),
                b"LUKS\xba\xbe",
                b"KDMV",
                b"QED\0",
                b"BZh",
                b"\x1f\x8b\x08",
                b"conectix",
            ] {
                bytes[..mark.len()].copy_from_slice(mark);
                let _ = judged(&bytes[..len]);
            }
        }
    }
}
