//! Bytes that a client sends.

use std::io::{self, Read};

use images::{ImageDigest, ImportSource, Origin};

use crate::registry_stub::gzip;
use crate::{disk, import, open, refused, request};

fn upload(reader: impl Read + Send + 'static) -> ImportSource {
    ImportSource::Upload(Box::new(reader))
}

#[tokio::test]
async fn an_upload_is_sealed_plain_or_packed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let imported = import(&store, request(upload(io::Cursor::new(disk())))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk()));
    assert_eq!(imported.origin, Origin::Upload);
    let packed = import(&store, request(upload(io::Cursor::new(gzip(&disk())))))
        .await
        .unwrap();
    assert!(packed.was_there);
    assert_eq!(packed.digests.unwrap().size_bytes(), 8 << 20);
}

#[tokio::test]
async fn an_upload_that_breaks_off_or_is_refused_leaves_nothing() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let broken = upload(io::Cursor::new(disk()).chain(Broken));
    assert_eq!(refused(&store, request(broken)).await, "upload_broke_off");
    assert_eq!(refused(&store, request(upload(io::empty()))).await, "empty");
    let mut expected = request(upload(io::Cursor::new(disk())));
    expected.expected = expected.expected.claimed_by_name("qcow2").unwrap();
    assert_eq!(refused(&store, expected).await, "format_mismatch");
    let mut bounded = request(upload(io::repeat(7)));
    bounded.expected.max_bytes = 4 << 20;
    assert_eq!(refused(&store, bounded).await, "bytes_beyond_quota");
    assert!(store.list().unwrap().is_empty());
}
