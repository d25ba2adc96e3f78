//! Headers: round trips, each refusal, and any bytes.

use super::*;
use proptest::prelude::*;

fn header(version: u32) -> Header {
    Header {
        version,
        cluster_bits: 16,
        backing_offset: 0x200,
        backing_len: 9,
        size_bytes: 1 << 30,
        l1_entries: 2,
        l1_offset: 0x30000,
        reftable_offset: 0x10000,
        reftable_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: u64::from(version >= 3),
        autoclear: 0,
        refcount_order: 4,
        compression: Compression::Zlib,
        header_len: if version == 2 { V2_BYTES } else { WRITTEN_BYTES },
        unknown: Vec::new(),
    }
}

fn parse(header: &Header) -> Result<Header, HeaderError> {
    let mut bytes = header.encode();
    bytes.resize(65536, 0);
    Header::parse(&bytes, |bit| (bit == 40).then(|| "flying carpets".into()))
}

#[test]
fn both_versions_come_back() {
    for header in [header(2), header(3)] {
        assert_eq!(parse(&header).unwrap(), header);
    }
    let later = Header {
        header_len: 128,
        unknown: vec![7; 16],
        incompatible: incompatible::COMPRESSION,
        compression: Compression::Zstd,
        ..header(3)
    };
    assert_eq!(parse(&later).unwrap(), later);
    let old = Header {
        header_len: V3_BYTES,
        ..header(3)
    };
    assert_eq!(parse(&old).unwrap(), old);
}

#[test]
fn features_that_are_not_understood_are_named() {
    let strange = Header {
        incompatible: 1 << 40 | 1 << 5 | 1,
        ..header(3)
    };
    let error = parse(&strange).unwrap_err().to_string();
    assert!(
        error.contains("flying carpets") && error.contains("unknown incompatible feature 5"),
        "{error}"
    );
    let mut luks = header(3).encode();
    luks[35] = 2;
    let error = Header::parse(&luks, |_| None).unwrap_err();
    assert_eq!(error, HeaderError::Encrypted("LUKS"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn damage_is_told_by_field() {
    let sound = || header(3);
    let table = [
        Header {
            cluster_bits: 8,
            ..sound()
        },
        Header {
            cluster_bits: 22,
            ..sound()
        },
        Header {
            refcount_order: 7,
            ..sound()
        },
        Header {
            l1_entries: 1,
            ..sound()
        },
        Header {
            l1_offset: 0,
            ..sound()
        },
        Header {
            l1_offset: 0x30200,
            ..sound()
        },
        Header {
            reftable_offset: 1 << 57,
            ..sound()
        },
        Header {
            reftable_clusters: 0,
            ..sound()
        },
        Header {
            reftable_clusters: 1000,
            ..sound()
        },
        Header {
            snapshot_count: 1,
            ..sound()
        },
        Header {
            snapshot_count: 65537,
            snapshots_offset: 65536,
            ..sound()
        },
        Header {
            backing_len: 1024,
            ..sound()
        },
        Header {
            backing_offset: u64::MAX,
            ..sound()
        },
        Header {
            size_bytes: u64::MAX,
            l1_entries: u32::MAX,
            ..sound()
        },
        Header {
            compression: Compression::Zstd,
            ..sound()
        },
        Header {
            incompatible: incompatible::EXTENDED_L2,
            cluster_bits: 12,
            ..sound()
        },
        Header {
            header_len: 96,
            ..sound()
        },
    ];
    for damaged in table {
        let error = parse(&damaged).expect_err("damaged");
        assert!(
            matches!(error, HeaderError::Field { .. } | HeaderError::Limit { .. }),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_give_a_header_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300), version in 2u8..=3) {
        let _ = Header::parse(&bytes, |_| None);
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(&[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, version]);
            let _ = Header::parse(&bytes, |_| None);
            for at in [20, 21, 22, 32, 33, 34, 35] {
                if let Some(byte) = bytes.get_mut(at) { *byte = 0; }
            }
            if let Some(byte) = bytes.get_mut(23) { *byte = 9 + *byte % 13; }
            let _ = Header::parse(&bytes, |_| None);
        }
    }
}
