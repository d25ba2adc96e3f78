//! Death in the middle of an import, phase by phase.

use std::process::Command;

use images::{Phase, Progress, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, Registry, blob_path, gzip, noise, tar};
use crate::{have, names, pull, told};

/// Set in the copy of this program that is to die: host of the registry, root of the store, and the phase to die in.
const DYING: &str = "KARAT_TEST_DIE_IN_PHASE";

const PHASES: [(&str, Phase); 5] = [
    ("resolving", Phase::Resolving),
    ("fetching", Phase::Fetching),
    ("unpacking", Phase::Unpacking),
    ("converting", Phase::Converting),
    ("sealing", Phase::Sealing),
];

/// Pulls, and aborts as soon as the phase is seen.
fn die(order: &str) {
    let [host, root, phase] = order.split('|').collect::<Vec<_>>().try_into().unwrap();
    let deadly = PHASES.iter().find(|(name, _)| *name == phase).unwrap().1;
    let settings = images::Settings {
        root: root.into(),
        insecure_registries: vec![host.to_owned()],
        ..images::Settings::default()
    };
    let (store, _) = Store::open(settings).unwrap();
    let (progress, watched) = watch::channel(Progress {
        phase: Phase::Sealing,
        ..Progress::default()
    });
    let (start, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        started.recv().unwrap();
        loop {
            // Phases can be short: look all the time.
            let now = *watched.borrow();
            let begun = now.total_bytes == 0 || now.done_bytes > 0;
            if now.phase == deadly && begun {
                std::process::abort();
            }
            std::thread::yield_now();
        }
    });
    progress.send_replace(Progress::default());
    start.send(()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reference = format!("{host}/demo:v1").parse().unwrap();
    runtime
        .block_on(store.pull(&reference, &progress, &CancellationToken::new()))
        .unwrap();
}

/// How often a process may miss the phase it is to die in.
const TRIES: u32 = 8;

/// The directory of a store whose process died in that phase. A phase can be over before the watcher looks, on a busy machine:
/// tried again then.
fn dead_in(name: &str, phase: Phase, registry: &Registry) -> Result<tempfile::TempDir, String> {
    let mut said = String::new();
    for _ in 0..TRIES {
        let root = tempfile::tempdir().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "crash::the_store_recovers_from_death_in_every_phase",
            ])
            .env(DYING, format!("{}|{}|{name}", registry.host, root.path().display()))
            .output()
            .unwrap();
        if !output.status.success() || phase == Phase::Sealing {
            return Ok(root);
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    Err(format!("nothing died in {name}: {said}"))
}

#[test]
fn the_store_recovers_from_death_in_every_phase() {
    if let Ok(order) = std::env::var(DYING) {
        return die(&order);
    }
    if !have("qemu-img") {
        return;
    }
    let registry = Registry::start();
    let source = tempfile::tempdir().unwrap();
    let (raw, qcow2) = (source.path().join("raw"), source.path().join("qcow2"));
    let disk = noise(12 << 20);
    std::fs::write(&raw, &disk).unwrap();
    let mut convert = Command::new("qemu-img");
    let converted = convert
        .args(["convert", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status()
        .unwrap();
    assert!(converted.success());
    let layer = gzip(&tar(&[("disk/a.qcow2", &std::fs::read(&qcow2).unwrap())]));
    let digest = registry.push("v1", &[(GZIP, layer.clone())], "");
    let layer_path = blob_path(&images::ImageDigest::of(&layer));
    let runtime = tokio::runtime::Runtime::new().unwrap();

    for (name, phase) in PHASES {
        let root = dead_in(name, phase, &registry).unwrap();
        let fetched_before = registry.requests(&layer_path).len();
        let (store, recovery) = Store::open(registry.settings(root.path())).unwrap();
        assert!(
            names(root.path(), "tmp").is_empty() && recovery.damaged.is_empty(),
            "{name}: {recovery:?}"
        );
        let sealed = store.list().unwrap().len();
        if matches!(phase, Phase::Unpacking | Phase::Converting) {
            assert_eq!((recovery.removed, recovery.kept_blobs, sealed), (1, 1, 0), "{name}");
        }
        let pulled = runtime
            .block_on(pull(&store, &registry.reference("demo:v1")))
            .map_err(|error| told(&error))
            .unwrap();
        assert_eq!(pulled.was_there, sealed == 1, "{name}");
        let fetched = registry.requests(&layer_path).len() - fetched_before;
        let whole_again = matches!(phase, Phase::Resolving | Phase::Fetching);
        assert_eq!(
            fetched,
            usize::from(whole_again),
            "{name}: a finished layer is not fetched again"
        );
        assert!(std::fs::read(root.path().join("images/sha256").join(digest.hex()).join("disk.raw")).unwrap() == disk);
    }
}
