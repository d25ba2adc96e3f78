//! Death at any moment of an import.

use std::process::{Command, Stdio};
use std::time::Duration;

use images::{Examination, Finding, ImageDigest, Progress, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::nginx::Nginx;
use crate::registry_stub::noise;
use crate::{import, request, settings, web};

/// Set in the copy of this program that is to die: root of the store and URL of the image.
const DYING: &str = "KARAT_TEST_IMPORT_UNTIL_KILLED";
/// How many die; `KARAT_TEST_KILLS` says another number.
const KILLS: u32 = 12;

/// Imports and removes for ever.
fn live(order: &str) {
    let (root, url) = order.split_once('|').unwrap();
    let (store, _) = Store::open(settings(root.as_ref())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    eprintln!("begun");
    loop {
        let (progress, _) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let imported = runtime
            .block_on(store.import(request(web(url)), &progress, &cancel))
            .unwrap();
        store.remove(&imported.image.digest).unwrap();
    }
}

#[test]
fn whenever_an_import_dies_the_next_start_finds_whole_images_and_nothing_else() {
    if let Ok(order) = std::env::var(DYING) {
        return live(&order);
    }
    let Some(nginx) = Nginx::start() else { return };
    let disk = noise(12 << 20);
    let url = nginx.put("disk.raw", &disk);
    let digest = ImageDigest::of(&disk);
    let root = tempfile::tempdir().unwrap();
    let kills = std::env::var("KARAT_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let (mut whole, mut none) = (0, 0);
    for round in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "kills::whenever_an_import_dies_the_next_start_finds_whole_images_and_nothing_else",
            ])
            .env(DYING, format!("{}|{url}", root.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("begun") {
            assert!(std::io::BufRead::read_line(&mut line, &mut text).unwrap() > 0, "{text}");
        }
        // Spread over what an import takes, without a pattern.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 160_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, recovery) = Store::open(settings(root.path())).unwrap();
        assert!(recovery.damaged.is_empty(), "{recovery:?}");
        let how = Examination {
            read_all: true,
            ..Examination::default()
        };
        assert_eq!(store.fsck(&how, &|| false).unwrap(), Vec::<Finding>::new());
        match store.list().unwrap().as_slice() {
            [] => none += 1,
            [image] => {
                assert_eq!(image.digest, digest);
                whole += 1;
            }
            several => panic!("{several:?}"),
        }
    }
    eprintln!("{kills} kills: {whole} found a whole image, {none} none");
    let (store, _) = Store::open(settings(root.path())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let imported = runtime.block_on(import(&store, request(web(&url)))).unwrap();
    assert_eq!(imported.image.digest, digest);
}
