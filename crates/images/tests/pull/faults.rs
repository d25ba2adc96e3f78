//! Registries and disks that fail, and what the next pull makes of it.

use std::process::Command;
use std::time::Duration;

use images::{ImageDigest, LayerError, Phase, Progress, PullError, Settings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{Fault, GZIP, Registry, TAR, blob_path, gzip, noise, tar};
use crate::{names, open, pull, told};

/// An image of two layers: the first small and whole, the second a megabyte that is to fail.
struct Two {
    registry: Registry,
    root: tempfile::TempDir,
    first: String,
    second: String,
    second_digest: ImageDigest,
    second_len: u64,
}

fn two() -> Two {
    let registry = Registry::start();
    let first = tar(&[("boot/vmlinuz", b"kernel")]);
    let second = tar(&[("disk/a.raw", &noise(1 << 20))]);
    registry.push("v1", &[(TAR, first.clone()), (TAR, second.clone())], "");
    Two {
        registry,
        root: tempfile::tempdir().unwrap(),
        first: blob_path(&ImageDigest::of(&first)),
        second: blob_path(&ImageDigest::of(&second)),
        second_digest: ImageDigest::of(&second),
        second_len: second.len() as u64,
    }
}

#[tokio::test]
async fn a_broken_connection_is_continued_within_the_pull() {
    let two = two();
    two.registry
        .misbehave(&two.second, &[Fault::Drop(300_000), Fault::Drop(200_000)]);
    let store = open(two.registry.settings(two.root.path()));
    pull(&store, &two.registry.reference("demo:v1"))
        .await
        .map_err(|error| told(&error))
        .unwrap();
    assert_eq!(two.registry.requests(&two.second), [0, 300_000, 500_000]);
    assert_eq!(two.registry.requests(&two.first), [0]);
}

#[tokio::test]
async fn a_registry_down_mid_pull_is_an_error_and_the_next_pull_resumes() {
    let two = two();
    two.registry
        .misbehave(&two.second, &[Fault::Drop(300_000), Fault::Status(503)]);
    let reference = two.registry.reference("demo:v1");
    let store = open(two.registry.settings(two.root.path()));
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(
        matches!(error, PullError::Status { status: 503, .. }),
        "{}",
        told(&error)
    );
    assert!(error.is_transient());
    assert!(names(two.root.path(), "tmp").is_empty() && store.list().unwrap().is_empty());
    // Also over a restart of the daemon.
    drop(store);
    let (store, recovery) = images::Store::open(two.registry.settings(two.root.path())).unwrap();
    assert_eq!(recovery.kept_blobs, 2);
    pull(&store, &reference).await.map_err(|error| told(&error)).unwrap();
    assert_eq!(
        two.registry.requests(&two.first),
        [0],
        "a finished layer is never fetched again"
    );
    assert_eq!(two.registry.requests(&two.second), [0, 300_000, 300_000]);
}

#[tokio::test]
async fn a_connection_that_never_gets_further_is_reported_with_its_bytes() {
    let two = two();
    two.registry
        .misbehave(&two.second, &[Fault::Drop(1000), Fault::Drop(0)]);
    let store = open(two.registry.settings(two.root.path()));
    let error = pull(&store, &two.registry.reference("demo:v1")).await.unwrap_err();
    let PullError::BrokeOff {
        done_bytes,
        total_bytes,
        ..
    } = error
    else {
        panic!("{}", told(&error))
    };
    assert_eq!((done_bytes, total_bytes), (1000, two.second_len));
}

#[tokio::test]
async fn a_registry_without_ranges_starts_over() {
    let two = two();
    two.registry
        .misbehave(&two.second, &[Fault::Drop(300_000), Fault::IgnoreRange]);
    let store = open(two.registry.settings(two.root.path()));
    pull(&store, &two.registry.reference("demo:v1"))
        .await
        .map_err(|error| told(&error))
        .unwrap();
    assert_eq!(two.registry.requests(&two.second), [0, 300_000]);
}

#[tokio::test]
async fn wrong_content_is_thrown_away_and_both_digests_are_named() {
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let reference = two.registry.reference("demo:v1");
    two.registry.misbehave(&two.second, &[Fault::Corrupt]);
    let error = pull(&store, &reference).await.unwrap_err();
    let PullError::DigestMismatch { expected, found, .. } = &error else {
        panic!("{}", told(&error))
    };
    assert!(expected == &two.second_digest && found != expected);
    assert!(told(&error).contains(&expected.to_string()) && told(&error).contains(&found.to_string()));
    assert_eq!(names(two.root.path(), "blobs").len(), 1, "only the first layer");

    two.registry.misbehave(&two.second, &[Fault::Longer]);
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(matches!(error, PullError::TooLong { .. }), "{}", told(&error));
    assert_eq!(names(two.root.path(), "blobs").len(), 1);
    pull(&store, &reference).await.unwrap();
}

#[tokio::test]
async fn a_layer_cut_before_it_was_pushed_is_told_from_a_broken_connection() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let whole = gzip(&tar(&[("disk/a.raw", &noise(100_000))]));
    registry.push("v1", &[(GZIP, whole[..50_000].to_vec())], "");
    let store = open(registry.settings(root.path()));
    let error = pull(&store, &registry.reference("demo:v1")).await.unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Layer {
                source: LayerError::Truncated,
                ..
            }
        ),
        "{}",
        told(&error)
    );
    assert!(names(root.path(), "tmp").is_empty());
}

#[tokio::test]
async fn unknown_names_refusals_and_unreachable_registries_say_what_to_do() {
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let error = pull(&store, &two.registry.reference("demo:v2")).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound(_)) && told(&error).contains("demo:v2"));
    two.registry.misbehave("/v2/demo/manifests/v1", &[Fault::Status(401)]);
    let error = pull(&store, &two.registry.reference("demo:v1")).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized(_)));
    // The manifest under a digest is another one.
    let wrong = ImageDigest::of(b"wrong");
    let body = "{\"schemaVersion\":2}";
    two.registry
        .push_manifest(&wrong.to_string(), "application/vnd.oci.image.manifest.v1+json", body);
    let error = pull(&store, &two.registry.reference(&format!("demo@{wrong}")))
        .await
        .unwrap_err();
    assert!(matches!(&error, PullError::DigestMismatch { expected, .. } if *expected == wrong));
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = pull(&store, &format!("{closed}/demo").parse().unwrap())
        .await
        .unwrap_err();
    assert!(told(&error).contains("insecure_registries"), "{}", told(&error));
    // A plain registry that is not on the list is never spoken to in plain.
    let other = Registry::start();
    let error = pull(&store, &other.reference("demo:v1")).await.unwrap_err();
    assert!(matches!(error, PullError::Insecure { .. }), "{}", told(&error));
    assert!(told(&error).contains(&format!("add {:?} to insecure_registries", other.host)));
    assert!(!error.is_transient());
    assert!(other.requests("/v2/").is_empty());
    // One that hangs up without a word may be anything.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/demo", mute.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || while mute.accept().is_ok() {});
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{}", told(&error));
}

#[tokio::test]
async fn a_cancelled_or_dropped_pull_keeps_what_it_has() {
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let reference = two.registry.reference("demo:v1");
    for (dropped, reached) in [(false, 200_000), (true, 350_000)] {
        two.registry.misbehave(&two.second, &[Fault::Stall(200_000)]);
        let (progress, mut watched) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let pulling = store.pull(&reference, &progress, &cancel);
        let stalled = watched.wait_for(|now| now.phase == Phase::Fetching && now.done_bytes >= reached);
        if dropped {
            tokio::select! {
                result = pulling => panic!("ended early: {result:?}"),
                _ = stalled => {}
            }
        } else {
            let cancelling = async {
                stalled.await.unwrap();
                cancel.cancel();
            };
            let (result, ()) = tokio::join!(pulling, cancelling);
            assert!(matches!(result, Err(PullError::Cancelled)));
        }
        assert!(store.list().unwrap().is_empty() && names(two.root.path(), "tmp").is_empty());
    }
    let finished = tokio::time::timeout(Duration::from_secs(5), pull(&store, &reference)).await;
    finished.expect("not behind a stalled pull").unwrap();
    let offsets = two.registry.requests(&two.second);
    assert!(
        offsets.last().is_some_and(|&offset| offset >= 350_000 - 4096),
        "{offsets:?}"
    );
    assert_eq!(two.registry.requests(&two.first), [0]);
}

#[tokio::test]
async fn a_bomb_is_stopped_by_the_size_limit() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let zeros = vec![0; 16 << 20];
    registry.push("v1", &[(GZIP, gzip(&tar(&[("disk/a.raw", &zeros)])))], "");
    let settings = Settings {
        max_disk_bytes: 8 << 20,
        ..registry.settings(root.path())
    };
    let error = pull(&open(settings), &registry.reference("demo:v1")).await.unwrap_err();
    assert!(matches!(
        error,
        PullError::Layer {
            source: LayerError::FileTooLarge { .. },
            ..
        }
    ));
    assert!(names(root.path(), "tmp").is_empty());
}

#[tokio::test]
async fn a_host_without_certificate_authorities_is_told_which_package_it_lacks() {
    const NOWHERE: &str = "/no/such/certificates";
    if std::env::var_os("SSL_CERT_FILE").is_none_or(|value| value != NOWHERE) {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "faults::a_host_without_certificate_authorities_is_told_which_package_it_lacks",
            ])
            .env("SSL_CERT_FILE", NOWHERE)
            .env("SSL_CERT_DIR", NOWHERE)
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let error = pull(&store, &two.registry.reference("demo:v1")).await.unwrap_err();
    assert!(
        told(&error).contains("install package ca-certificates"),
        "{}",
        told(&error)
    );
}

/// Set in the copy of this program that runs on a file system of 4 MiB.
const SMALL: &str = "KARAT_TEST_SMALL_FILE_SYSTEM";

#[tokio::test]
async fn a_full_disk_leaves_nothing_but_layers() {
    let Some(root) = std::env::var_os(SMALL) else {
        let dir = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=4m none \"$1\" || exit 99; shift; exec \"$@\"";
        let this = std::env::current_exe().unwrap();
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(dir.path())
            .arg(this)
            .args([
                "--exact",
                "--nocapture",
                "faults::a_full_disk_leaves_nothing_but_layers",
            ])
            .env(SMALL, dir.path())
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) if status.code() == Some(101) => panic!("the copy on a small file system failed"),
            other => eprintln!("skipped: no small file system can be mounted here ({other:?})"),
        }
        return;
    };
    let root = std::path::PathBuf::from(root);
    let registry = Registry::start();
    let store = open(registry.settings(&root));
    // The layer fits, the disk in it does not: 1 MiB compressed, 16 MiB of which nothing is a hole.
    let disk: Vec<u8> = noise(4096).into_iter().cycle().take(16 << 20).collect();
    let layer = gzip(&tar(&[("disk/a.raw", &disk)]));
    registry.push("big", &[(GZIP, layer.clone())], "");
    let error = pull(&store, &registry.reference("demo:big")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::DiskFull { path } if *path == root),
        "{}",
        told(&error)
    );
    assert!(names(&root, "tmp").is_empty() && store.list().unwrap().is_empty());
    assert_eq!(names(&root, "blobs"), [ImageDigest::of(&layer).hex()]);
    // A layer that cannot fit is refused before it is fetched, and what is not needed gives way.
    let huge = tar(&[("disk/a.raw", &noise(6 << 20))]);
    registry.push("huge", &[(TAR, huge.clone())], "");
    let error = pull(&store, &registry.reference("demo:huge")).await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }));
    assert!(registry.requests(&blob_path(&ImageDigest::of(&huge))).is_empty());
    assert!(names(&root, "blobs").is_empty());
    // There is room for what fits.
    registry.push("fits", &[(TAR, tar(&[("disk/a.raw", &noise(1 << 20))]))], "");
    pull(&store, &registry.reference("demo:fits"))
        .await
        .map_err(|error| told(&error))
        .unwrap();
}
