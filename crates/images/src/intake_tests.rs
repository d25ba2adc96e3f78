//! The pass: what comes out of it, and what it refuses.

use std::os::unix::fs::MetadataExt;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn room(left_bytes: u64) -> Room {
    Room {
        left_bytes,
        store: "default".parse().unwrap(),
        limit_bytes: left_bytes,
        root: PathBuf::new(),
        reserved_bytes: 0,
    }
}

struct Done {
    taken: Result<Taken, ImportError>,
    bytes: Vec<u8>,
    blocks_bytes: u64,
    seen: u64,
}

fn pass(mut input: &[u8], left_bytes: u64, stop_after: u64) -> Done {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("incoming");
    let mut seen = 0;
    let taken = Pass {
        target: target.clone(),
        expected: &Expectations {
            max_bytes: 64 << 20,
            ..Expectations::up_to(64 << 20)
        },
        unpack: DecompressLimits::up_to(65 << 20),
        methods: &[HashMethod::Sha256, HashMethod::Sha512],
        room: room(left_bytes),
        resumable: None,
        seen: &mut |count| {
            seen += count;
            seen <= stop_after
        },
    }
    .run(&mut input);
    Done {
        taken,
        bytes: std::fs::read(&target).unwrap_or_default(),
        blocks_bytes: target.metadata().map_or(0, |metadata| metadata.blocks() * 512),
        seen,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    HashMethod::Sha256.digest(bytes)
}

/// 4 MiB, with data at both ends.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    for (index, byte) in disk.iter_mut().take(100_000).enumerate() {
        *byte = u8::try_from(index % 251).unwrap();
    }
    *disk.last_mut().unwrap() = 1;
    disk
}

#[test]
fn a_disk_passes_once_and_stays_sparse() {
    let disk = disk();
    let done = pass(&disk, u64::MAX, u64::MAX);
    let taken = done.taken.unwrap();
    assert!(done.bytes == disk);
    assert!(done.blocks_bytes < 300_000, "{}", done.blocks_bytes);
    assert_eq!(done.seen, disk.len() as u64);
    assert_eq!(taken.inspection.format, Format::Raw);
    assert_eq!(taken.file_sha256.as_deref(), Some(&*sha256(&disk)));
    assert_eq!(taken.digests.get(HashMethod::Sha256), Some(&*sha256(&disk)));
    assert!(taken.digests.get(HashMethod::Sha512).is_some() && taken.packed.is_none());
}

#[test]
fn a_compressed_disk_has_both_digests() {
    let (disk, packed) = (disk(), gzip(&disk()));
    let done = pass(&packed, u64::MAX, u64::MAX);
    let taken = done.taken.unwrap();
    assert!(done.bytes == disk);
    assert_eq!(done.seen, packed.len() as u64);
    assert_eq!(taken.digests.get(HashMethod::Sha256), Some(&*sha256(&disk)));
    assert_eq!(taken.packed.unwrap().get(HashMethod::Sha256), Some(&*sha256(&packed)));
}

/// The header of an empty qcow2 of version 3; no tables.
fn header(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 104];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
    bytes[103] = 104;
    bytes
}

#[test]
fn refusals_end_the_pass_where_they_show() {
    let mut backed = header(1 << 20);
    backed[15] = 200;
    backed.resize(32 << 20, 0);
    let done = pass(&backed, u64::MAX, u64::MAX);
    let error = done.taken.unwrap_err();
    assert_eq!((error.code(), error.is_refusal()), ("backing_file", true));
    assert!(done.seen < 1 << 20, "{} bytes were read", done.seen);
    let twice = pass(&gzip(&gzip(&disk())), u64::MAX, u64::MAX).taken.unwrap_err();
    assert_eq!(twice.code(), "nested_compression");
    let packed = gzip(&disk());
    let cut = pass(&packed[..packed.len() / 2], u64::MAX, u64::MAX).taken.unwrap_err();
    assert_eq!(cut.code(), "compressed_truncated");
    let large = pass(&vec![1; 80 << 20], u64::MAX, u64::MAX).taken.unwrap_err();
    assert_eq!(large.code(), "bytes_beyond_quota");
    assert_eq!(pass(b"", u64::MAX, u64::MAX).taken.unwrap_err().code(), "empty");
}

#[test]
fn quota_and_a_stop_end_it() {
    let full = pass(&[7; 1 << 20], 512 << 10, u64::MAX).taken.unwrap_err();
    assert_eq!((full.code(), full.is_refusal()), ("store_quota", false));
    // Holes take nothing.
    assert!(pass(&disk(), 512 << 10, u64::MAX).taken.is_ok());
    let stopped = pass(&disk(), u64::MAX, 1 << 20).taken.unwrap_err();
    assert_eq!(stopped.code(), "cancelled");
}

#[test]
fn a_reader_that_fails_is_the_uploads_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Pass {
        target: dir.path().join("incoming"),
        expected: &Expectations::up_to(64 << 20),
        unpack: DecompressLimits::up_to(72 << 20),
        methods: &[],
        room: room(u64::MAX),
        resumable: None,
        seen: &mut |_| true,
    }
    .run(&mut [1; 5000].as_slice().chain(Broken))
    .unwrap_err();
    assert!(
        matches!(error, ImportError::Upload { after_bytes: 5000, .. }),
        "{error:?}"
    );
    assert_eq!((error.code(), error.is_refusal()), ("upload_broke_off", false));
}
