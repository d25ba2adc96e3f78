//! web-download, s3 and file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use image_sources::{BucketStyle, FileRoots, FileSource, S3Key, S3Server, S3Source};
use images::{DiskFormat, ImageDigest, ImportError, ImportSource, Origin, Phase, Progress, SourceFormat};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::nginx::Nginx;
use crate::registry_stub::{Fault, Registry, blob_path, noise};
use crate::{agent, disk, have, import, left, names, open, refused, request, run, web};

#[tokio::test]
async fn a_raw_disk_from_the_web_is_sealed_as_it_came_and_sparse() {
    let Some(nginx) = Nginx::start() else { return };
    let url = nginx.put("disk.raw", &disk());
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let imported = import(&store, request(web(&url))).await.unwrap();
    let image = &imported.image;
    assert!(!imported.was_there);
    assert_eq!(image.digest, ImageDigest::of(&disk()), "sha256sum tells the name");
    assert_eq!(image.reference, url);
    assert_eq!(
        (image.disk.format, image.disk.source_format, image.disk.virtual_bytes),
        (DiskFormat::Raw, SourceFormat::Raw, 8 << 20)
    );
    let path = store.disk_path(&image.digest);
    assert!(std::fs::read(&path).unwrap() == disk());
    let metadata = path.metadata().unwrap();
    assert!(metadata.blocks() * 512 < 300_000, "holes are holes");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
    assert_eq!(left(&store), Vec::<String>::new());
    assert_eq!(nginx.log_of(1).len(), 1, "one request and no more: {:?}", nginx.log());

    // Asked again, nothing but the head is fetched.
    let now = store.probe(&web(&url)).await.unwrap();
    assert_eq!(imported.origin.is_same(&now), Some(true));
    let gets = nginx.log_of(2).iter().filter(|line| line.starts_with("GET")).count();
    assert_eq!(gets, 1);
    nginx.put("disk.raw", &disk()[..4 << 20]);
    let now = store.probe(&web(&url)).await.unwrap();
    assert_eq!(imported.origin.is_same(&now), Some(false));

    // The same bytes from elsewhere are stored once.
    let other = nginx.put("copy.img", &disk());
    assert!(import(&store, request(web(&other))).await.unwrap().was_there);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[tokio::test]
async fn a_disk_of_odd_length_is_padded_to_sectors() {
    let Some(nginx) = Nginx::start() else { return };
    let url = nginx.put("odd.raw", &disk()[..1_000_001]);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let image = import(&store, request(web(&url))).await.unwrap().image;
    assert_eq!(
        (image.disk.source_bytes, image.disk.virtual_bytes),
        (1_000_001, 1_000_448)
    );
    let sealed = std::fs::read(store.disk_path(&image.digest)).unwrap();
    assert_eq!(image.digest, ImageDigest::of(&sealed));
    assert!(sealed[..1_000_001] == disk()[..1_000_001] && sealed[1_000_001..].iter().all(|&byte| byte == 0));
}

#[tokio::test]
async fn a_qcow2_disk_stays_one() {
    let Some(nginx) = Nginx::start() else { return };
    if !have("qemu-img") {
        return;
    }
    nginx.put("raw", &disk());
    run(&nginx.root(), "qemu-img convert -f raw -O qcow2 -c raw disk.img");
    let bytes = std::fs::read(nginx.root().join("disk.img")).unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let image = import(&store, request(web(&nginx.url("disk.img"))))
        .await
        .unwrap()
        .image;
    assert_eq!(
        (image.disk.format, image.disk.virtual_bytes, image.disk.file_bytes),
        (DiskFormat::Qcow2, 8 << 20, bytes.len() as u64)
    );
    assert_eq!(image.digest, ImageDigest::of(&bytes));
    let path = store.disk_path(&image.digest);
    assert!(path.ends_with("disk.qcow2") && std::fs::read(path).unwrap() == bytes);
    assert_eq!(store.get(&image.digest).unwrap(), image);
}

#[tokio::test]
async fn compressed_disks_are_unpacked_on_the_way() {
    let Some(nginx) = Nginx::start() else { return };
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for (program, suffix) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")] {
        if !have(program) {
            continue;
        }
        nginx.put("disk", &disk());
        run(&nginx.root(), &format!("{program} -k -f disk"));
        let url = nginx.url(&format!("disk.{suffix}"));
        let image = import(&store, request(web(&url))).await.unwrap().image;
        assert_eq!(image.digest, ImageDigest::of(&disk()), "{program}");
    }
}

#[tokio::test]
async fn a_cancelled_import_ends_at_once_and_leaves_nothing() {
    let Some(nginx) = Nginx::start() else { return };
    let url = nginx.put("slow/disk.raw", &disk());
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (progress, mut watched) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let stopping = cancel.clone();
    tokio::spawn(async move {
        let begun = |progress: &Progress| progress.phase == Phase::Fetching && progress.done_bytes > 0;
        watched.wait_for(begun).await.unwrap();
        stopping.cancel();
    });
    let began = Instant::now();
    let error = store.import(request(web(&url)), &progress, &cancel).await.unwrap_err();
    assert!(matches!(error, ImportError::Cancelled), "{error:?}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "40 s would be the whole of it"
    );
    assert_eq!(left(&store), Vec::<String>::new());
}

#[tokio::test]
async fn an_import_goes_on_after_a_restart_where_it_ended() {
    let Some(nginx) = Nginx::start() else { return };
    let disk = noise(4 << 20);
    let url = nginx.put("half/disk.raw", &disk);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (progress, mut watched) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let stopping = cancel.clone();
    tokio::spawn(async move {
        watched
            .wait_for(|progress| progress.done_bytes >= 2 << 20)
            .await
            .unwrap();
        stopping.cancel();
    });
    let error = store.import(request(web(&url)), &progress, &cancel).await.unwrap_err();
    assert!(matches!(error, ImportError::Cancelled), "{error:?}");
    assert_eq!(names(&root.path().join("partial")).len(), 1);
    drop(store);
    let store = open(root.path());
    let imported = import(&store, request(web(&url))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk));
    assert!(std::fs::read(store.disk_path(&imported.image.digest)).unwrap() == disk);
    let log = nginx.log_of(2);
    let (begin, bytes) = log[1].rsplit_once(' ').unwrap();
    assert!(begin.ends_with(" 206"), "{log:?}");
    assert!(
        bytes.parse::<u64>().unwrap() <= 3 << 20,
        "no more than was missing: {log:?}"
    );
    assert_eq!(names(&root.path().join("partial")), Vec::<String>::new());

    // Of an object that has changed meanwhile nothing is used.
    store.remove(&imported.image.digest).unwrap();
    let (progress, mut watched) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let stopping = cancel.clone();
    tokio::spawn(async move {
        watched
            .wait_for(|progress| progress.done_bytes >= 2 << 20)
            .await
            .unwrap();
        stopping.cancel();
    });
    store.import(request(web(&url)), &progress, &cancel).await.unwrap_err();
    let other: Vec<u8> = disk.iter().map(|byte| byte ^ 1).take(2 << 20).collect();
    nginx.put("half/disk.raw", &other);
    let imported = import(&store, request(web(&url))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&other));
}

#[tokio::test]
async fn servers_that_fail_leave_nothing() {
    let registry = Registry::start();
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let path = blob_path(&registry.push_blob(&disk()));
    let url = format!("http://{}{path}", registry.host);
    for (faults, expected) in [
        (vec![Fault::Status(500); 2], "unexpected_status"),
        (vec![Fault::Status(403)], "unauthorized"),
        (vec![Fault::Drop(2 << 20); 3], "not_resumable"),
    ] {
        registry.misbehave(&path, &faults);
        assert_eq!(refused(&store, request(web(&url))).await, expected, "{faults:?}");
    }
    registry.misbehave(&path, &[]);
    let nowhere = format!("http://{}/nothing", registry.host);
    assert_eq!(refused(&store, request(web(&nowhere))).await, "not_found");
    assert!(import(&store, request(web(&url))).await.is_ok());
    // With a tag to tell that it is the same, a fetch goes on where it broke off.
    registry.tag();
    registry.misbehave(&path, &[Fault::Drop(2 << 20), Fault::Drop(3 << 20)]);
    assert!(import(&store, request(web(&url))).await.unwrap().was_there);
    let asked = registry.requests(&path);
    assert_eq!(asked[asked.len() - 3..], [0, 2 << 20, 5 << 20]);
    assert_eq!(names(&root.path().join("images/sha256")).len(), 1);
}

#[tokio::test]
async fn a_local_file_has_to_lie_below_a_root() {
    let (files, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(files.path().join("allowed")).unwrap();
    let path = files.path().join("allowed/disk.raw");
    std::fs::write(&path, disk()).unwrap();
    std::fs::write(files.path().join("secret"), disk()).unwrap();
    std::os::unix::fs::symlink("../secret", files.path().join("allowed/link")).unwrap();
    let store = open(root.path());
    let roots = FileRoots::new([files.path().join("allowed")]).unwrap();
    let file = |path: std::path::PathBuf| ImportSource::File(FileSource::new(&roots, path));
    let imported = import(&store, request(file(path.clone()))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk()));
    assert_eq!(
        imported.origin.is_same(&store.probe(&file(path)).await.unwrap()),
        Some(true)
    );
    for outside in ["secret", "allowed/link"] {
        let source = file(files.path().join(outside));
        assert_eq!(refused(&store, request(source)).await, "denied_path", "{outside}");
    }
}

#[tokio::test]
async fn an_object_of_an_s3_server() {
    let (directory, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(directory.path().join("images")).unwrap();
    std::fs::write(directory.path().join("images/disk.raw"), disk()).unwrap();
    let mut service = S3ServiceBuilder::new(FileSystem::new(directory.path()).unwrap());
    service.set_auth(SimpleAuth::from_single("reader", "a very secret key"));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let source = |secret: &str| {
        let server = S3Server {
            endpoint: format!("http://127.0.0.1:{port}"),
            region: "us-east-1".to_owned(),
            style: BucketStyle::Path,
            key: Some(S3Key {
                id: "reader".to_owned(),
                secret: secret.to_owned(),
                session_token: None,
            }),
        };
        ImportSource::S3(S3Source::new(&agent(), &server, "s3://images/disk.raw", None).unwrap())
    };
    let store = open(root.path());
    let imported = import(&store, request(source("a very secret key"))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk()));
    assert_eq!(imported.image.reference, "s3://images/disk.raw (127.0.0.1)");
    assert!(matches!(imported.origin, Origin::Object { .. }));
    assert_eq!(refused(&store, request(source("guessed"))).await, "unauthorized");
    serving.abort();
}
