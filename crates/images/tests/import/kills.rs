//! Death at any moment of an import, from every kind of source and in every phase.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use images::{Examination, Finding, ImageDigest, ImportSource, Phase, Progress, Settings, SourceFormat, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, Registry, ZSTD, blob_path, noise, tar, zstd};
use crate::{have, import, names, request, run, settings, web};

/// Set in the copy of this program that is to die: root of the store, host of the registry, what to import.
const DYING: &str = "KARAT_TEST_IMPORT_UNTIL_KILLED";
/// How many die; `KARAT_TEST_KILLS` says another number, `KARAT_TEST_SEED` where the random numbers begin.
const KILLS: u32 = 25;
/// Name of the test, for the copy.
const TEST: &str = "kills::whenever_an_import_dies_the_next_start_finds_whole_images_and_nothing_else";

/// As if it were a phase: the import has ended well.
const SEALED: &str = "sealed";
const PHASES: [(Phase, &str); 5] = [
    (Phase::Resolving, "resolving"),
    (Phase::Fetching, "fetching"),
    (Phase::Unpacking, "unpacking"),
    (Phase::Converting, "converting"),
    (Phase::Sealing, "sealing"),
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % bound
    }
}

fn store_settings(root: &Path, host: &str) -> Settings {
    Settings {
        insecure_registries: vec![host.to_owned()],
        ..settings(root)
    }
}

fn source(registry_host: &str, what: &str) -> ImportSource {
    match what.split_once(' ') {
        Some(("web", url)) => web(url),
        _ => ImportSource::Registry {
            reference: format!("{registry_host}/demo:{what}").parse().unwrap(),
        },
    }
}

/// Imports and removes for ever; tells each phase as it begins.
fn live(order: &str) {
    let [root, host, what] = order.split('|').collect::<Vec<_>>().try_into().unwrap();
    let (store, _) = Store::open(store_settings(root.as_ref(), host)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    loop {
        for image in store.list().unwrap() {
            store.remove(&image.digest).unwrap();
        }
        let (progress, mut watched) = watch::channel(Progress::default());
        let telling = runtime.spawn(async move {
            let mut last = None;
            while watched.changed().await.is_ok() {
                let now = watched.borrow_and_update().phase;
                if last.replace(now) != Some(now) {
                    let name = PHASES.iter().find(|(phase, _)| *phase == now).unwrap().1;
                    eprintln!("phase {name}");
                }
            }
        });
        let cancel = CancellationToken::new();
        let imported = runtime.block_on(store.import(request(source(host, what)), &progress, &cancel));
        imported.unwrap();
        drop(progress);
        runtime.block_on(telling).unwrap();
        eprintln!("phase {SEALED}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// A kind of source: what it is called, what to ask for, and the phases it goes through.
struct Kind {
    name: &'static str,
    what: String,
    /// Path of what is fetched.
    path: String,
    phases: &'static [&'static str],
}

fn kinds(registry: &Registry, disk: &[u8]) -> Vec<Kind> {
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &tar(&[("disk/a.img", disk)])).unwrap();
        encoder.finish().unwrap()
    };
    let mut kinds = Vec::new();
    let mut layer = |name: &'static str, media, bytes: Vec<u8>, phases| {
        let path = blob_path(&ImageDigest::of(&bytes));
        registry.push(name, &[(media, bytes)], "");
        kinds.push(Kind {
            name,
            what: name.to_owned(),
            path,
            phases,
        });
    };
    layer("gzip", GZIP, gzip, &["resolving", "fetching", "fetching", "sealing"]);
    let phases = &["resolving", "fetching", "fetching", "sealing"];
    layer("zstd", ZSTD, zstd(&tar(&[("disk/a.img", disk)])), phases);
    let mut object = |name: &'static str, bytes: &[u8], phases| {
        let digest = registry.push_blob(bytes);
        kinds.push(Kind {
            name,
            what: format!("web {}", registry.url(&digest)),
            path: blob_path(&digest),
            phases,
        });
    };
    object("web", disk, &["fetching", "sealing"]);
    if have("qemu-img") {
        let work = tempfile::tempdir().unwrap();
        std::fs::write(work.path().join("raw"), disk).unwrap();
        run(work.path(), "qemu-img convert -f raw -O vmdk raw made");
        let vmdk = std::fs::read(work.path().join("made")).unwrap();
        object("vmdk", &vmdk, &["fetching", "converting", "sealing"]);
    }
    kinds
}

/// Starts a copy of this program that lives until it is killed.
fn start(root: &Path, host: &str, kind: &Kind) -> (Child, BufReader<ChildStderr>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", TEST])
        .env(DYING, format!("{}|{host}|{}", root.display(), kind.what))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap());
    (child, lines)
}

/// Kills it a moment after it entered `phase`; returns the phase it was in, and whether an import had ended before.
fn kill_in(phase: &str, after: Duration, (mut child, mut lines): (Child, BufReader<ChildStderr>)) -> (String, bool) {
    let mut text = String::new();
    while !text.ends_with(&format!("phase {phase}\n")) {
        assert!(lines.read_line(&mut text).unwrap() > 0, "{text}");
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    std::io::Read::read_to_string(&mut lines, &mut text).unwrap();
    let last = text.lines().rev().find_map(|line| line.strip_prefix("phase "));
    (last.unwrap().to_owned(), text.contains(&format!("phase {SEALED}")))
}

/// How far the fetch of `kind` had come by what is left on disk; bytes that need not be fetched again.
fn kept_bytes(root: &Path, kind: &Kind) -> u64 {
    if !root.join("partial").exists() {
        return 0;
    }
    let hex = kind.path.rsplit(':').next().unwrap();
    let length = |path: std::path::PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
    let blobs = root.join("blobs");
    let layer = length(blobs.join(hex)).max(length(blobs.join(format!("{hex}.partial"))));
    let offsets = names(&root.join("partial")).into_iter().map(|name| {
        let state = std::fs::read_to_string(root.join("partial").join(name).join("state.json")).unwrap();
        let after = state.split("\"offset\":").nth(1).unwrap_or("0");
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap()
    });
    offsets.max().unwrap_or(0).max(layer)
}

/// The store after a start is whole images and what the next import of `kind` goes on with.
fn examine(root: &Path, host: &str, kind: &Kind, raw: &ImageDigest) -> usize {
    let (store, recovery) = Store::open(store_settings(root, host)).unwrap();
    assert!(recovery.damaged.is_empty(), "{recovery:?}");
    let how = Examination {
        read_all: true,
        ..Examination::default()
    };
    let mut findings = store.fsck(&how, &|| false).unwrap();
    let hex = kind.path.rsplit(':').next().unwrap();
    findings.retain(|finding| match finding {
        Finding::Leftover { name } => kind.name != "zstd" || !name.contains(hex),
        finding => !matches!(finding, Finding::Beginning { .. }),
    });
    assert_eq!(findings, [], "{}", kind.name);
    assert!(names(&root.join("tmp")).is_empty());
    assert!(names(&root.join("partial")).len() <= 1, "of one source");
    let images = store.list().unwrap();
    for image in &images {
        if image.disk.source_format != SourceFormat::Vmdk {
            assert_eq!(image.digest, *raw);
        }
    }
    images.len()
}

#[test]
fn whenever_an_import_dies_the_next_start_finds_whole_images_and_nothing_else() {
    if let Ok(order) = std::env::var(DYING) {
        return live(&order);
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = number("KARAT_TEST_KILLS").map_or(KILLS, |kills| u32::try_from(kills).unwrap());
    let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = number("KARAT_TEST_SEED").unwrap_or_else(|| u64::from(clock()));
    eprintln!("{kills} kills, KARAT_TEST_SEED={seed}");
    let mut random = Random(seed);
    let registry = Registry::start();
    registry.tag();
    let disk = [noise(4 << 20), vec![0; 1 << 20], noise(4 << 20)].concat();
    let raw = ImageDigest::of(&disk);
    let kinds = kinds(&registry, &disk);
    let (mut deaths, mut whole, mut resumed) = (BTreeMap::<String, u32>::new(), 0, 0);
    // Several deaths of one kind one after the other in one store, so that what was resumed dies again.
    for run in 0..kills.div_ceil(5) {
        let kind = &kinds[usize::try_from(run).unwrap() % kinds.len()];
        let root = tempfile::tempdir().unwrap();
        for _ in 0..5.min(kills - run * 5) {
            let kept = kept_bytes(root.path(), kind);
            let asked = registry.requests(&kind.path).len();
            let child = start(root.path(), &registry.host, kind);
            let phase = usize::try_from(random.below(kind.phases.len() as u64 + 1)).unwrap();
            let phase = kind.phases.get(phase).unwrap_or(&SEALED);
            let after = Duration::from_micros(random.below(60_000));
            let (died_in, has_ended) = kill_in(phase, after, child);
            *deaths.entry(died_in).or_default() += 1;
            // The import behind one that ended begins anew.
            if kept > 0
                && !has_ended
                && let Some(&from) = registry.requests(&kind.path).get(asked)
            {
                assert!(
                    from >= kept,
                    "{}: {kept} bytes were there, asked from {from}",
                    kind.name
                );
                resumed += 1;
            }
            whole += examine(root.path(), &registry.host, kind, &raw);
        }
        // And an import that is let live ends well.
        let (store, _) = Store::open(store_settings(root.path(), &registry.host)).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let imported = runtime.block_on(import(&store, request(source(&registry.host, &kind.what))));
        let image = imported.unwrap().image;
        assert!(store.verify(&image.digest, &|| false).is_ok());
        assert!(image.digest == raw || kind.name == "vmdk");
        drop(store);
        let left = [names(&root.path().join("blobs")), names(&root.path().join("tmp"))].concat();
        assert!(left.is_empty(), "{left:?}");
    }
    eprintln!("died in {deaths:?}; {whole} starts found a whole image; {resumed} went on with a fetch");
    // Few deaths may all be alike.
    assert!(
        kills < 100 || (deaths.len() >= 5 && resumed > 10 && whole > 5),
        "{deaths:?}"
    );
}
