//! File systems that are full before an import ends, whatever it is doing then.

use std::path::Path;
use std::process::Command;

use images::{Examination, ImageDigest, ImportSource, Settings, Store};

use crate::registry_stub::{GZIP, Registry, TAR, ZSTD, blob_path, gzip, noise, tar, zstd};
use crate::{have, import, names, pull, request, run, settings, web};

/// Set in the copy of this program that has small file systems: the directory they are in.
const SMALL: &str = "KARAT_TEST_IMPORTS_INTO_SMALL_FILE_SYSTEMS";
/// Name of the test, for the copy.
const TEST: &str = "full::a_file_system_that_fills_up_leaves_no_half_image";
/// Sizes of the file systems, KiB: from one that takes hardly anything to one that takes all.
const SIZES_KIB: [u32; 12] = [
    256, 1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 10_240, 13_312, 40_960,
];

#[test]
fn a_file_system_that_fills_up_leaves_no_half_image() {
    if let Some(dir) = std::env::var_os(SMALL) {
        return fill(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "for s in $SIZES; do mkdir \"$1/$s\" && mount -t tmpfs -o size=${s}k none \"$1/$s\" || exit 99; done; shift; exec \"$@\"";
    let sizes = SIZES_KIB.map(|size| size.to_string()).join(" ");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", TEST])
        .env(SMALL, dir.path())
        .env("SIZES", sizes)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if status.code() == Some(101) => panic!("the copy with small file systems failed"),
        other => eprintln!("skipped: no small file system can be mounted here ({other:?})"),
    }
}

/// The copy.
fn fill(dir: &Path) {
    let registry = Registry::start();
    registry.tag();
    let disk = noise(3 << 20);
    let archive = tar(&[("disk/a.img", &disk)]);
    registry.push("gzip", &[(GZIP, gzip(&archive))], "");
    registry.push("zstd", &[(ZSTD, zstd(&archive))], "");
    let mut objects = vec![registry.push_blob(&disk)];
    let work = tempfile::tempdir().unwrap();
    if have("qemu-img") {
        std::fs::write(work.path().join("raw"), &disk).unwrap();
        run(work.path(), "qemu-img convert -f raw -O vmdk raw made");
        objects.push(registry.push_blob(&std::fs::read(work.path().join("made")).unwrap()));
    }
    let (mut full, mut taken) = (0, 0);
    for size in SIZES_KIB {
        let root = dir.join(size.to_string());
        let settings = Settings {
            insecure_registries: vec![registry.host.clone()],
            ..settings(&root)
        };
        let layer = |tag: &str| ImportSource::Registry {
            reference: registry.reference(&format!("demo:{tag}")),
        };
        let sources = ["gzip", "zstd"].map(layer).into_iter();
        for source in sources.chain(objects.iter().map(|digest| web(&registry.url(digest)))) {
            let (store, _) = Store::open(settings.clone()).unwrap();
            let what = format!("{source:?} in {size} KiB");
            let runtime = tokio::runtime::Runtime::new().unwrap();
            match runtime.block_on(import(&store, request(source))) {
                Ok(imported) => {
                    assert!(store.verify(&imported.image.digest, &|| false).is_ok(), "{what}");
                    store.remove(&imported.image.digest).unwrap();
                    taken += 1;
                }
                Err(error) => {
                    assert!(matches!(error.code(), "store_full" | "disk_full"), "{what}: {error:?}");
                    assert!(error.is_transient(), "{what}");
                    full += 1;
                }
            }
            assert!(store.list().unwrap().is_empty(), "{what}");
            assert!(names(&root.join("tmp")).is_empty(), "{what}");
            // What is kept for another time makes room for others, and then nothing is left.
            store.drop_unused_blobs().unwrap();
            assert_eq!(store.fsck(&Examination::default(), &|| false).unwrap(), [], "{what}");
            assert!(names(&root.join("partial")).is_empty(), "{what}");
        }
    }
    // A layer that cannot fit is refused before it is fetched.
    let huge = tar(&[("disk/a.img", &noise(6 << 20))]);
    registry.push("huge", &[(TAR, huge.clone())], "");
    let (store, _) = Store::open(Settings {
        insecure_registries: vec![registry.host.clone()],
        ..settings(&dir.join("4096"))
    })
    .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime
        .block_on(pull(&store, &registry.reference("demo:huge")))
        .unwrap_err();
    assert_eq!(error.code(), "store_full");
    assert!(registry.requests(&blob_path(&ImageDigest::of(&huge))).is_empty());
    eprintln!("{full} imports found no room, {taken} did");
    assert!(full >= 12 && taken >= 12, "{full} and {taken}");
}
