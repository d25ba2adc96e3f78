//! The header of a qcow2 image, as far as an import must judge it before any other program sees it.
//!
//! Layout and feature bits: QEMU's `docs/interop/qcow2.txt`. Total: any bytes give a header or a refusal, and at most the
//! first 112 bytes are looked at.

use crate::DiskFormatError;

/// First bytes of every qcow2 image.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the file the judgement needs.
pub(crate) const HEADER_BYTES: usize = 112;

/// Incompatible feature bit 1: the image was found corrupt.
const CORRUPT: u64 = 1 << 1;
/// Incompatible feature bit 2: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Bits 0 (dirty), 3 (compression type) and 4 (extended L2 entries): a reader deals with them.
const HARMLESS: u64 = 1 | 1 << 3 | 1 << 4;
/// Smallest and largest cluster size as powers of two: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// The size a guest sees, bytes, of an image that stands on its own and is safe to hand to a converter.
///
/// `start` is the file's beginning, at least `HEADER_BYTES` of it if the file is that long.
pub(crate) fn virtual_size(start: &[u8]) -> Result<u64, DiskFormatError> {
    let damaged = |what: &str| DiskFormatError::Damaged(what.to_owned());
    let short = || damaged("the file ends inside the header");
    let word = |offset: usize| -> Result<u32, DiskFormatError> {
        let bytes = start.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or_else(short)
    };
    let long =
        |offset: usize| Ok::<u64, DiskFormatError>(u64::from(word(offset)?) << 32 | u64::from(word(offset + 4)?));
    if start.get(..4) != Some(&MAGIC) {
        return Err(damaged("the magic number is missing"));
    }
    let version = word(4)?;
    if !matches!(version, 2 | 3) {
        return Err(DiskFormatError::Qcow2Feature(format!("version {version}")));
    }
    if long(8)? != 0 || word(16)? != 0 {
        return Err(DiskFormatError::BackingFile);
    }
    if !CLUSTER_BITS.contains(&word(20)?) {
        return Err(damaged("the cluster size is out of range"));
    }
    if word(32)? != 0 {
        return Err(DiskFormatError::Encrypted);
    }
    let incompatible = if version == 3 { long(72)? } else { 0 };
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(DiskFormatError::ExternalData);
    }
    if incompatible & CORRUPT != 0 {
        return Err(damaged("it is marked corrupt; repair it with qemu-img check -r all"));
    }
    let unknown = incompatible & !HARMLESS;
    if unknown != 0 {
        return Err(DiskFormatError::Qcow2Feature(format!(
            "incompatible feature bits {unknown:#x}"
        )));
    }
    if version == 3 && word(100)? < 104 {
        return Err(damaged("the header length is too small"));
    }
    long(24)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A version 3 header of an empty image; no tables.
    pub(crate) fn header(size: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[24..32].copy_from_slice(&size.to_be_bytes());
        bytes[103] = 104;
        bytes
    }

    fn with(offset: usize, byte: u8) -> Result<u64, DiskFormatError> {
        let mut bytes = header(4096);
        bytes[offset] = byte;
        virtual_size(&bytes)
    }

    #[test]
    fn reads_the_size_of_versions_2_and_3() {
        assert_eq!(virtual_size(&header(5 << 30)).unwrap(), 5 << 30);
        assert_eq!(with(7, 2).unwrap(), 4096);
        assert_eq!(with(79, 0b1_1001).unwrap(), 4096);
    }

    #[test]
    fn refuses_each_danger_by_its_name() {
        assert!(matches!(with(15, 1), Err(DiskFormatError::BackingFile)));
        assert!(matches!(with(19, 9), Err(DiskFormatError::BackingFile)));
        assert!(matches!(with(79, 4), Err(DiskFormatError::ExternalData)));
        assert!(matches!(with(35, 2), Err(DiskFormatError::Encrypted)));
        assert!(matches!(with(79, 2), Err(DiskFormatError::Damaged(_))));
        assert!(matches!(with(72, 1), Err(DiskFormatError::Qcow2Feature(_))));
        assert!(matches!(with(7, 4), Err(DiskFormatError::Qcow2Feature(_))));
        assert!(matches!(with(23, 8), Err(DiskFormatError::Damaged(_))));
        assert!(matches!(with(0, 0), Err(DiskFormatError::Damaged(_))));
        assert!(matches!(
            virtual_size(&header(1)[..90]),
            Err(DiskFormatError::Damaged(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn is_total(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120), magic in proptest::bool::ANY) {
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = virtual_size(&bytes);
        }
    }
}
