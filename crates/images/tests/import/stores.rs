//! Several stores, their quotas, and whether they are what they say.

use std::io::Cursor;
use std::os::unix::fs::{FileExt, PermissionsExt};

use images::{
    Examination, Finding, ImageDigest, ImportSource, OpenError, Progress, Settings, StoreName, Stores, StoresError,
    Tended,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{Registry, noise};
use crate::{disk, import, left, open, refused, request, settings, web};

fn name(text: &str) -> StoreName {
    text.parse().unwrap()
}

fn upload(bytes: Vec<u8>) -> ImportSource {
    ImportSource::Upload(Box::new(Cursor::new(bytes)))
}

/// Stores `fast`, the default, and `small`, which takes 1 MiB.
fn stores(root: &std::path::Path) -> Stores {
    let store = |text: &str, quota_bytes| Settings {
        name: name(text),
        quota_bytes,
        ..settings(&root.join(text))
    };
    let all = vec![store("fast", None), store("small", Some(1 << 20))];
    let (stores, _, closed) = Stores::open(all, name("fast")).unwrap();
    assert!(closed.is_empty());
    stores
}

async fn place(
    stores: &Stores,
    bytes: Vec<u8>,
    names: &[&str],
    allow_failure: bool,
) -> Result<images::Placed, images::NotPlaced> {
    let mut request = request(upload(bytes));
    request.stores = names.iter().map(|text| name(text)).collect();
    let (progress, _) = watch::channel(Progress::default());
    stores
        .import(request, allow_failure, &progress, &CancellationToken::new())
        .await
}

#[tokio::test]
async fn an_image_goes_to_all_stores_that_are_named() {
    let root = tempfile::tempdir().unwrap();
    let stores = stores(root.path());
    let placed = place(&stores, disk(), &[], false).await.unwrap();
    assert_eq!(placed.stores, [name("fast")]);
    let digest = placed.imported.image.digest;
    let placed = place(&stores, disk(), &["fast", "small"], false).await.unwrap();
    assert_eq!(placed.stores, [name("fast"), name("small")]);
    assert_eq!(stores.with_image(&digest).len(), 2);
    let small = stores.get(&name("small")).unwrap();
    assert!(std::fs::read(small.disk_path(&digest)).unwrap() == disk());
    stores.remove_from(&digest, &name("fast")).unwrap();
    assert_eq!(stores.with_image(&digest).len(), 1);
    let (progress, _) = watch::channel(Progress::default());
    let copied = stores
        .copy(
            &digest,
            &name("small"),
            &name("fast"),
            &progress,
            &CancellationToken::new(),
        )
        .await
        .unwrap();
    assert!(!copied.was_there && stores.with_image(&digest).len() == 2);
    assert_eq!(
        place(&stores, disk(), &["none"], false).await.unwrap_err().error.code(),
        "no_such_store"
    );
}

#[tokio::test]
async fn a_store_that_is_full_fails_the_import_unless_that_is_allowed() {
    let root = tempfile::tempdir().unwrap();
    let stores = stores(root.path());
    let error = place(&stores, noise(4 << 20), &["fast", "small"], false)
        .await
        .unwrap_err();
    let digest = error.left.unwrap();
    assert_eq!((error.error.code(), error.error.is_refusal()), ("store_quota", false));
    assert!(stores.all().all(|store| left(store).is_empty()));
    // Where it came to it stays, until the caller knows that nobody wants it; who finds it there has left nothing.
    let having = stores.with_image(&digest);
    assert_eq!(
        having.iter().map(|store| store.name().clone()).collect::<Vec<_>>(),
        [name("fast")]
    );
    let again = place(&stores, noise(4 << 20), &["fast", "small"], false)
        .await
        .unwrap_err();
    assert_eq!(again.left, None);
    having[0].remove(&digest).unwrap();
    let placed = place(&stores, noise(4 << 20), &["fast", "small"], true).await.unwrap();
    assert_eq!(placed.stores, [name("fast")]);
    assert_eq!(placed.failed[0].0, name("small"));
    let direct = place(&stores, noise(4 << 20), &["small"], true).await.unwrap_err();
    assert_eq!(direct.error.code(), "store_quota");
    // Sparse images take what they hold.
    assert!(place(&stores, disk(), &["small"], false).await.is_ok());
    let states = stores.states();
    assert_eq!(states.len(), 2);
    assert!(states[0].is_default && states[0].usage.unwrap().images_bytes >= 4 << 20);
    assert!(states[1].usage.unwrap().images_bytes <= states[1].quota_bytes.unwrap());
}

#[tokio::test]
async fn the_first_store_may_fail_too_where_that_is_allowed() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let stores = stores(root.path());
    let url = registry.url(&registry.push_blob(&noise(4 << 20)));
    let (progress, _) = watch::channel(Progress::default());
    let import = async |allow_failure| {
        let mut request = request(web(&url));
        request.stores = vec![name("small"), name("fast")];
        stores
            .import(request, allow_failure, &progress, &CancellationToken::new())
            .await
    };
    assert_eq!(import(false).await.unwrap_err().error.code(), "store_quota");
    let placed = import(true).await.unwrap();
    assert_eq!(placed.stores, [name("fast")]);
    assert_eq!(
        (&placed.failed[0].0, placed.failed[0].1.code()),
        (&name("small"), "store_quota")
    );
    // What a client sends goes to the first store that is there at all.
    let (path, away) = (root.path().join("small"), root.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    let placed = place(&stores, disk(), &["small", "fast"], true).await.unwrap();
    assert_eq!(placed.stores, [name("fast")]);
    assert_eq!(placed.failed[0].1.code(), "store_unavailable");
    std::fs::rename(&away, &path).unwrap();
}

#[tokio::test]
async fn a_damaged_image_is_replaced_by_the_next_import_of_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let image = import(&store, request(upload(disk()))).await.unwrap().image;
    let path = store.disk_path(&image.digest);
    let write = |bytes: &[u8]| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(bytes, 5000).unwrap();
    };
    let right = disk()[5000..5001].to_vec();
    write(&[!right[0]]);
    assert_eq!(
        store.verify(&image.digest, &|| false).unwrap_err().code(),
        "store_damaged"
    );
    // It is known from now on, after a restart too.
    drop(store);
    let (store, recovery) = images::Store::open(settings(root.path())).unwrap();
    assert_eq!(recovery.damaged.len(), 1);
    assert_eq!(store.get(&image.digest).unwrap_err().code(), "store_damaged");
    assert!(store.list().unwrap().is_empty());
    // Whoever reads it again and finds it right takes that back: it was the machine.
    write(&right);
    store.verify(&image.digest, &|| false).unwrap();
    store.get(&image.digest).unwrap();
    write(&[!right[0]]);
    store.verify(&image.digest, &|| false).unwrap_err();
    let again = import(&store, request(upload(disk()))).await.unwrap();
    assert!(!again.was_there);
    store.verify(&image.digest, &|| false).unwrap();
    assert!(std::fs::read(store.disk_path(&image.digest)).unwrap() == disk());
    let plain = Examination {
        read_all: true,
        ..Examination::default()
    };
    assert_eq!(store.fsck(&plain, &|| false).unwrap(), []);
}

#[test]
fn stores_are_opened_together_or_told_of() {
    let root = tempfile::tempdir().unwrap();
    let store = |text: &str| Settings {
        name: name(text),
        ..settings(&root.path().join(text))
    };
    let error = |settings, default: &str| Stores::open(settings, name(default)).err().unwrap();
    assert!(matches!(error(vec![], "a"), StoresError::None));
    assert!(matches!(error(vec![store("a")], "b"), StoresError::NoDefault(_)));
    assert!(matches!(
        error(vec![store("a"), store("a")], "a"),
        StoresError::Twice(_)
    ));
    let mut unmounted = store("b");
    unmounted.must_be_mounted = true;
    let (stores, _, closed) = Stores::open(vec![store("a"), unmounted], name("a")).unwrap();
    assert!(matches!(closed[0].error, OpenError::NotMounted(_)));
    let closed = stores.get(&name("b")).unwrap();
    assert_eq!(closed.check_available().unwrap_err().code(), "store_unavailable");
    assert!(matches!(closed.tend(), Tended::AsBefore));
    assert!(
        !root.path().join("b").exists(),
        "nothing is made beneath a missing mount"
    );
}

#[tokio::test]
async fn a_store_whose_mount_is_lost_is_not_written_to() {
    let root = tempfile::tempdir().unwrap();
    let (path, away) = (root.path().join("store"), root.path().join("away"));
    let store = open(&path);
    let image = import(&store, request(upload(disk()))).await.unwrap().image;
    // What a lost mount looks like: the directory beneath is there, empty or with old files.
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir_all(path.join("tmp")).unwrap();
    assert_eq!(refused(&store, request(upload(disk()))).await, "store_unavailable");
    assert_eq!(store.remove(&image.digest).unwrap_err().code(), "store_unavailable");
    assert_eq!(
        store.verify(&image.digest, &|| false).unwrap_err().code(),
        "store_unavailable"
    );
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    assert!(store.verify(&image.digest, &|| false).is_ok());
}

#[tokio::test]
async fn an_examination_finds_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let image = import(&store, request(upload(disk()))).await.unwrap().image;
    let other = import(&store, request(upload(noise(4096)))).await.unwrap().image;
    let missing = ImageDigest::of(b"not here");
    let how = Examination {
        referenced: Some([image.digest.clone(), missing.clone()].into()),
        read_all: true,
    };
    let expected = [
        Finding::Missing { digest: missing },
        Finding::Unreferenced {
            digest: other.digest.clone(),
        },
    ];
    assert_eq!(store.fsck(&how, &|| false).unwrap(), expected);
    let plain = Examination {
        read_all: true,
        ..Examination::default()
    };
    assert_eq!(store.fsck(&plain, &|| false).unwrap(), Vec::<Finding>::new());

    // One byte of the disk turns over.
    let path = store.disk_path(&image.digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 5000).unwrap();
    let error = store.verify(&image.digest, &|| false).unwrap_err();
    assert_eq!(error.code(), "store_damaged");
    assert!(store.verify(&other.digest, &|| false).is_ok());
    std::fs::create_dir(root.path().join("images/sha256/odd")).unwrap();
    std::fs::write(root.path().join("tmp/left"), "").unwrap();
    let findings = store.fsck(&plain, &|| false).unwrap();
    let mut codes: Vec<&str> = findings.iter().map(Finding::code).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["damaged", "leftover", "stray"]);
}

#[tokio::test]
async fn a_store_that_was_lost_comes_back_as_itself_and_not_as_what_is_beneath() {
    let root = tempfile::tempdir().unwrap();
    let (path, away) = (root.path().join("store"), root.path().join("away"));
    let settings = Settings {
        remembered: Some(root.path().join("store.identity")),
        ..settings(&path)
    };
    let store = images::Store::open(settings.clone()).unwrap().0;
    let image = import(&store, request(upload(disk()))).await.unwrap().image;
    assert!(matches!(store.tend(), Tended::AsBefore));
    // The directory beneath has a store of its own, from a time when the mount was forgotten.
    std::fs::rename(&path, &away).unwrap();
    for part in ["images/sha256", "tmp", "partial", "blobs"] {
        std::fs::create_dir_all(path.join(part)).unwrap();
    }
    std::fs::write(path.join("images.lock"), "").unwrap();
    assert!(matches!(store.tend(), Tended::Lost(_)));
    assert!(matches!(store.tend(), Tended::AsBefore));
    assert_eq!(refused(&store, request(upload(disk()))).await, "store_unavailable");
    assert_eq!(left(&store), Vec::<String>::new());
    // Nor does one that starts now take it for the store.
    let error = images::Store::open(settings.clone()).err().unwrap();
    assert!(matches!(error, OpenError::Stranger { .. }), "{error}");
    std::fs::remove_dir_all(&path).unwrap();
    assert!(matches!(store.tend(), Tended::AsBefore));
    assert!(!path.exists(), "nothing is made where it was");
    std::fs::rename(&away, &path).unwrap();
    std::fs::create_dir(path.join("tmp/left")).unwrap();
    match store.tend() {
        Tended::Back(recovery) => assert_eq!(recovery.removed, 1),
        other => panic!("{other:?}"),
    }
    assert!(store.verify(&image.digest, &|| false).is_ok());
    assert!(import(&store, request(upload(noise(4096)))).await.is_ok());
}
