//! Layers taken in as they come: what is kept of them, and how the next import goes on.

use std::io::Write;
use std::time::{Duration, Instant};

use images::{Examination, ImageDigest, ImportError, ImportSource, Phase, Progress, Settings, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{Fault, GZIP, Registry, TAR, ZSTD, blob_path, noise, tar, zstd};
use crate::{have, import, names, request, run, settings};

/// As `tar -z` does it: in blocks of some ten KiB. The fastest level may make one block of all, which can only be entered at
/// its beginning.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// As tools do it that make frames of parts of files.
fn frames(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(100_000).flat_map(zstd).collect()
}

struct Served {
    registry: Registry,
    root: tempfile::TempDir,
    disk: Vec<u8>,
    /// Path of the large layer, and its length.
    path: String,
    length: usize,
}

/// A small layer with a kernel, and a large one of `kind` with the disk.
fn served(kind: &'static str, pack: impl Fn(&[u8]) -> Vec<u8>) -> Served {
    let registry = Registry::start();
    let disk = [noise(3 << 20), vec![0; 2 << 20], noise(3 << 20), b"end".repeat(200)].concat();
    let layer = pack(&tar(&[("disk/a.img", &disk)]));
    registry.push(
        "v1",
        &[(TAR, tar(&[("boot/vmlinuz", b"kernel")])), (kind, layer.clone())],
        "",
    );
    Served {
        registry,
        root: tempfile::tempdir().unwrap(),
        disk,
        path: blob_path(&ImageDigest::of(&layer)),
        length: layer.len(),
    }
}

impl Served {
    fn open(&self) -> Store {
        Store::open(Settings {
            insecure_registries: vec![self.registry.host.clone()],
            ..settings(self.root.path())
        })
        .unwrap()
        .0
    }

    async fn import(&self, store: &Store) -> Result<images::Imported, ImportError> {
        let reference = self.registry.reference("demo:v1");
        import(store, request(ImportSource::Registry { reference })).await
    }

    fn kept(&self) -> Vec<String> {
        let mut kept = names(&self.root.path().join("partial"));
        kept.extend(names(&self.root.path().join("blobs")));
        kept.extend(names(&self.root.path().join("tmp")));
        kept
    }
}

fn sound(store: &Store) {
    let how = Examination {
        read_all: true,
        ..Examination::default()
    };
    assert_eq!(store.fsck(&how, &|| false).unwrap(), []);
}

#[tokio::test]
async fn nothing_compressed_is_kept_and_the_disk_is_what_was_packed() {
    for (kind, pack) in [
        (TAR, (|bytes: &[u8]| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>),
        (GZIP, gzip),
        (ZSTD, zstd),
    ] {
        let served = served(kind, pack);
        let store = served.open();
        let image = served.import(&store).await.unwrap().image;
        assert_eq!(
            image.disk.digest,
            Some(ImageDigest::of(&[served.disk.clone(), vec![0; 424]].concat()))
        );
        assert_eq!(image.kernel.as_ref().unwrap().size_bytes, 6);
        assert_eq!(served.registry.requests(&served.path), [0]);
        assert!(served.kept().is_empty(), "{kind}: {:?}", served.kept());
        sound(&store);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_continued_within_the_import() {
    let served = served(GZIP, gzip);
    let faults = [Fault::Drop(700_000), Fault::Drop(600_000), Fault::IgnoreRange];
    served.registry.misbehave(&served.path, &faults);
    let store = served.open();
    served.import(&store).await.unwrap();
    assert_eq!(served.registry.requests(&served.path), [0, 700_000, 1_300_000]);
    sound(&store);
}

#[tokio::test]
async fn a_layer_cut_off_is_entered_again_after_a_restart() {
    for (kind, pack) in [
        (TAR, (|bytes: &[u8]| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>),
        (GZIP, gzip),
        (ZSTD, frames),
    ] {
        let served = served(kind, pack);
        let half = served.length / 2;
        served
            .registry
            .misbehave(&served.path, &[Fault::Drop(half), Fault::Status(503)]);
        let store = served.open();
        let error = served.import(&store).await.unwrap_err();
        assert_eq!(error.code(), "registry_status", "{kind}");
        assert!(error.is_transient() && store.list().unwrap().is_empty());
        drop(store);
        let store = served.open();
        let image = served.import(&store).await.unwrap().image;
        let asked = served.registry.requests(&served.path);
        // A checkpoint is a megabyte here, a block of the compression far less.
        let from = usize::try_from(asked[2]).unwrap();
        assert!(
            asked.len() == 3 && from <= half && from + (5 << 18) > half,
            "{kind}: {asked:?} of {half}"
        );
        assert_eq!(image.disk.source_bytes, served.disk.len() as u64);
        assert!(served.kept().is_empty(), "{kind}: {:?}", served.kept());
        sound(&store);
    }
}

#[tokio::test]
async fn a_layer_of_one_frame_is_begun_twice_at_most() {
    let served = served(ZSTD, zstd);
    let (third, half) = (served.length / 3, served.length / 2);
    // Within an import it goes on where it was.
    let faults = [Fault::Drop(third), Fault::Drop(half - third), Fault::Status(503)];
    served.registry.misbehave(&served.path, &faults);
    let store = served.open();
    assert_eq!(served.import(&store).await.unwrap_err().code(), "registry_status");
    assert!(
        names(&served.root.path().join("blobs")).is_empty(),
        "nothing compressed"
    );
    drop(store);
    served
        .registry
        .misbehave(&served.path, &[Fault::Drop(third), Fault::Status(503)]);
    let store = served.open();
    assert_eq!(served.import(&store).await.unwrap_err().code(), "registry_status");
    drop(store);
    let store = served.open();
    let image = served.import(&store).await.unwrap().image;
    let (third, half) = (third as u64, half as u64);
    assert_eq!(
        served.registry.requests(&served.path),
        [0, third, half, 0, third, third]
    );
    assert_eq!(image.disk.source_bytes, served.disk.len() as u64);
    assert!(served.kept().is_empty(), "{:?}", served.kept());
    sound(&store);
}

#[tokio::test]
async fn what_was_changed_meanwhile_is_fetched_anew() {
    let served = served(GZIP, gzip);
    let half = served.length / 2;
    for damage in 0..3 {
        served
            .registry
            .misbehave(&served.path, &[Fault::Drop(half), Fault::Status(503)]);
        let store = served.open();
        served.import(&store).await.unwrap_err();
        drop(store);
        let partial = served.root.path().join("partial");
        let dir = partial.join(&names(&partial)[0]);
        let disk = dir.join("found-1");
        match damage {
            0 => {
                let mut bytes = std::fs::read(&disk).unwrap();
                bytes[100_000] ^= 1;
                std::fs::write(&disk, bytes).unwrap();
            }
            1 => std::fs::write(&disk, b"short").unwrap(),
            _ => std::fs::write(dir.join("state.json"), b"{}").unwrap(),
        }
        let store = served.open();
        let image = served.import(&store).await.unwrap().image;
        assert_eq!(served.registry.requests(&served.path).last(), Some(&0), "{damage}");
        assert!(served.kept().is_empty());
        sound(&store);
        store.remove(&image.digest).unwrap();
    }
}

#[tokio::test]
async fn wrong_bytes_are_told_from_a_layer_that_was_damaged_before() {
    let served = served(GZIP, gzip);
    let store = served.open();
    served.registry.misbehave(&served.path, &[Fault::Corrupt]);
    let error = served.import(&store).await.unwrap_err();
    assert_eq!(error.code(), "registry_digest_mismatch");
    assert!(served.kept().is_empty());
    served.registry.misbehave(&served.path, &[Fault::Longer]);
    assert_eq!(served.import(&store).await.unwrap_err().code(), "registry_too_long");
    assert!(served.kept().is_empty());
    // The bytes that the manifest names, which are no whole stream.
    let whole = gzip(&tar(&[("disk/a.img", &noise(2 << 20))]));
    served.registry.push("v1", &[(GZIP, whole[..1 << 20].to_vec())], "");
    let error = served.import(&store).await.unwrap_err();
    assert_eq!((error.code(), error.is_refusal()), ("container_layer", true));
    assert!(served.kept().is_empty());
}

#[tokio::test]
async fn a_disk_that_is_refused_ends_the_import_at_the_byte_that_shows_it() {
    if !have("qemu-img") {
        return;
    }
    let (served, work) = (served(GZIP, gzip), tempfile::tempdir().unwrap());
    std::fs::write(work.path().join("raw"), noise(8 << 20)).unwrap();
    run(work.path(), "qemu-img convert -f raw -O qcow2 raw made");
    let mut backed = std::fs::read(work.path().join("made")).unwrap();
    backed[15] = 200;
    let layer = gzip(&tar(&[("disk/a.qcow2", &backed)]));
    served.registry.push("v1", &[(GZIP, layer.clone())], "");
    let path = blob_path(&ImageDigest::of(&layer));
    // Stays silent for ten seconds after the first megabyte.
    served.registry.misbehave(&path, &[Fault::Stall(1 << 20)]);
    let (store, began) = (served.open(), Instant::now());
    assert_eq!(served.import(&store).await.unwrap_err().code(), "backing_file");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(served.kept().is_empty());
    // A layer above may replace it.
    let above = tar(&[("disk/.wh.a.qcow2", b""), ("disk/b.img", &served.disk)]);
    served.registry.push("v1", &[(GZIP, layer), (TAR, above)], "");
    served.import(&store).await.unwrap();
    sound(&store);
}

#[tokio::test]
async fn an_import_that_is_cancelled_or_dropped_keeps_what_it_noted() {
    for is_dropped in [false, true] {
        let served = served(GZIP, gzip);
        let half = served.length / 2;
        served.registry.misbehave(&served.path, &[Fault::Stall(half)]);
        let store = served.open();
        let (progress, mut watched) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let reference = served.registry.reference("demo:v1");
        let importing = store.import(request(ImportSource::Registry { reference }), &progress, &cancel);
        let stalled = watched.wait_for(|now| now.phase == Phase::Fetching && now.done_bytes + 4096 > half as u64);
        if is_dropped {
            tokio::select! {
                result = importing => panic!("ended early: {result:?}"),
                _ = stalled => {}
            }
        } else {
            let cancelling = async {
                stalled.await.unwrap();
                cancel.cancel();
            };
            let (result, ()) = tokio::join!(importing, cancelling);
            assert_eq!(result.unwrap_err().code(), "cancelled");
            assert!(names(&served.root.path().join("tmp")).is_empty());
        }
        let finished = tokio::time::timeout(Duration::from_secs(5), served.import(&store)).await;
        finished.expect("not behind the import that stalled").unwrap();
        assert!(*served.registry.requests(&served.path).last().unwrap() > 1 << 20);
        assert!(served.kept().is_empty());
        sound(&store);
    }
}
