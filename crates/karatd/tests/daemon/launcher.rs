//! `karat image` and `karat boot-source`, as people type them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::registry::{Registry, digest};
use crate::web::{CONFIG, Web};

/// The launcher, which is another package's program: built with all others, or now.
pub(crate) static KARAT: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_BIN_EXE_karatd")).with_file_name("karat");
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "-p", "karat", "--target-dir"])
            .arg(path.ancestors().nth(2).unwrap())
            .status();
        assert!(built.unwrap().success() && path.exists(), "karat can not be built");
    }
    path
});

pub(crate) fn karat(daemon: &Daemon, words: &[&str]) -> Output {
    let mut command = Command::new(&*KARAT);
    command.arg("--socket").arg(daemon.path("karat.sock")).args(words);
    command.output().unwrap()
}

/// What it prints; it has to succeed.
#[track_caller]
pub(crate) fn says(daemon: &Daemon, words: &[&str]) -> String {
    let output = karat(daemon, words);
    assert!(output.status.success(), "{words:?}: {}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What it tells people; it has to fail.
#[track_caller]
pub(crate) fn fails(daemon: &Daemon, words: &[&str]) -> String {
    let output = karat(daemon, words);
    assert!(!output.status.success(), "{words:?}");
    told(&output)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn image(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/images/{name}")).json()
}

#[test]
fn images_come_in_by_every_method_that_can_be_typed() {
    let (web, registry) = (Web::start(), Registry::start());
    registry.push("1", 7);
    let config = format!(
        "insecure_registries = [{:?}]\n{CONFIG}[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n",
        registry.host
    );
    let daemon = Daemon::start_with(&config);
    let disk = vec![9; 128 << 10];
    let url = web.put("disk.raw", &disk);
    let line = format!("{}\n", digest(&disk));

    assert_eq!(
        says(
            &daemon,
            &["image", "create", "web", "--from", &url, "--digest", &digest(&disk)]
        ),
        line
    );
    let wrong = fails(
        &daemon,
        &["image", "create", "bad", "--from", &url, "--digest", &digest(b"other")],
    );
    assert!(wrong.contains("digest"), "{wrong}");
    assert_eq!(says(&daemon, &["image", "import", "bad", "--from", &url]), line);

    let file = daemon.path("state/files/disk.raw");
    std::fs::write(&file, &disk).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(
        says(
            &daemon,
            &["image", "create", "file", "--from", path, "--store", "archive"]
        ),
        line
    );
    // The bytes are in a store all the same, and that one takes them too.
    assert_eq!(image(&daemon, "file")["stores"], json!(["default", "archive"]));
    assert_eq!(says(&daemon, &["image", "upload", "sent", path]), line);
    says(&daemon, &["image", "displace", "sent", "archive"]);
    says(&daemon, &["image", "copy", "sent", "archive"]);
    assert_eq!(image(&daemon, "sent")["stores"], json!(["default", "archive"]));

    let from = format!("docker://{}", registry.reference("1"));
    says(&daemon, &["image", "create", "pulled", "--from", &from]);
    assert_eq!(image(&daemon, "pulled")["has_kernel"], true);
    let list = says(&daemon, &["image", "ls"]);
    for name in ["web", "bad", "file", "sent", "pulled"] {
        assert!(
            list.lines()
                .any(|line| line.starts_with(name) && line.contains("active")),
            "{list}"
        );
    }
    let info = says(&daemon, &["image", "import-info"]);
    assert!(info.contains("web-download") && info.contains("archive ("), "{info}");
    says(&daemon, &["image", "fsck"]);
    says(&daemon, &["image", "verify", "web", "pulled"]);
    let missing = fails(&daemon, &["image", "create", "none", "--from", "/nowhere/disk.raw"]);
    assert!(missing.contains("/nowhere/disk.raw"), "{missing}");
    says(
        &daemon,
        &["image", "rm", "web", "bad", "file", "sent", "pulled", "none"],
    );
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
}

#[test]
fn disks_become_images_which_are_copied_to_further_stores() {
    let config = "reserved_space = 0\n[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n";
    let daemon = Daemon::start_with(config);
    let volume = daemon.make(&json!({"name": "data", "size": "1Mi"}));
    assert_eq!(volume["state"], "ready");
    says(&daemon, &["image", "create", "of-data", "--from-volume", "data"]);
    assert_eq!(image(&daemon, "of-data")["virtual_size_bytes"], 1 << 20);
    let nobody = fails(&daemon, &["image", "create", "of-nobody", "--from-vm", "nobody"]);
    assert!(nobody.contains("nobody"), "{nobody}");
    says(&daemon, &["image", "copy", "of-data", "archive"]);
    let there = fails(&daemon, &["image", "copy", "of-data", "archive"]);
    assert!(there.contains("leave it out"), "{there}");
    let all = ["image", "copy", "of-data", "--all-stores", "--allow-failure", "false"];
    says(&daemon, &all);
    let shown = says(&daemon, &["image", "show", "of-data"]);
    assert!(shown.contains("default, archive"), "{shown}");
    says(&daemon, &["image", "rm", "of-data"]);
}

#[test]
fn boot_sources_are_set_synchronised_and_switched() {
    let registry = Registry::start();
    let first = registry.push("12", 1);
    let config = format!(
        "{}[boot_sources]\nsystem_directory = \"@DIR@/system.d\"\ncustom_directory = \"@DIR@/custom.d\"\n",
        registry.config()
    );
    let daemon = Daemon::start_with(&config);
    let from = format!("docker://{}", registry.reference("12"));
    let set = [
        "boot-source",
        "set",
        "debian-12",
        "--from",
        &from,
        "--schedule",
        "@daily",
        "--managed",
        "debian12",
    ];
    says(&daemon, &set);
    says(&daemon, &["boot-source", "sync", "debian-12"]);
    let shown = says(&daemon, &["image", "show", "debian12"]);
    assert!(shown.contains(daemon.content(&first).as_str().unwrap()), "{shown}");
    let second = registry.push("12", 2);
    says(&daemon, &["boot-source", "sync", "debian-12"]);
    let shown = says(&daemon, &["image", "show", "debian12"]);
    assert!(shown.contains(daemon.content(&second).as_str().unwrap()), "{shown}");
    let list = says(&daemon, &["boot-source", "ls"]);
    assert!(list.contains("debian-12") && list.contains("yes"), "{list}");
    says(&daemon, &["boot-source", "disable", "debian-12"]);
    let refused = fails(&daemon, &["boot-source", "sync", "debian-12"]);
    assert!(refused.contains("karat boot-source enable debian-12"), "{refused}");
    says(&daemon, &["boot-source", "enable", "debian-12"]);
    says(&daemon, &["boot-source", "sync", "debian-12"]);
    says(&daemon, &["boot-source", "rm", "debian-12"]);
}
