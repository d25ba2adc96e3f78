//! Files of volumes no machine runs with: committed, made to stand alone, measured.

use std::process::Command;

use serde_json::{Value, json};

use super::live::{SNAPSHOT, images, kill, machine, names, only, start};
use super::{blank, inspect, qemu_img};
use crate::harness::Daemon;

const COMMIT: &str = "/v1/volumes/data/commit";
const REBASE: &str = "/v1/volumes/data/rebase";

/// A volume of three files, of which no machine runs; the newest has sevens from 64 KiB on.
fn three_files(daemon: &Daemon) -> Value {
    let volume = machine(daemon, "");
    for _ in 0..2 {
        let taken = daemon.begin(SNAPSHOT, &json!({}));
        assert_eq!(taken["phase"], "Succeeded", "{taken}");
    }
    daemon.post(COMMIT, &json!({})).problem(409, "in_use");
    daemon.post(REBASE, &json!({})).problem(409, "in_use");
    kill(daemon);
    let top = daemon.path("state/volumes").join(&names(&volume, &["2.qcow2"])[0]);
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 64k 64k"])
        .arg(&top)
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    volume
}

/// What the volume shows, as a copy of it has it.
fn shows(daemon: &Daemon, name: &str) -> Vec<u8> {
    let wish = json!({"name": name, "format": "raw"});
    let copied = daemon.begin("/v1/volumes/data/convert", &wish);
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    std::fs::read(daemon.file(&daemon.volume(name))).unwrap()
}

fn is_as_written(bytes: &[u8]) -> bool {
    let sevens = bytes.get(65_536..131_072);
    bytes.starts_with(b"contents") && sevens.is_some_and(|sevens| sevens.iter().all(|&byte| byte == 7))
}

#[test]
fn a_commit_makes_one_file_less_and_the_volume_shows_the_same() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let volume = three_files(&daemon);
    let committed = daemon.begin(COMMIT, &json!({}));
    assert_eq!(
        (&committed["phase"], &committed["kind"]),
        (&json!("Succeeded"), &json!("volume_commit")),
        "{committed}"
    );
    only(&daemon, &names(&volume, &["1.qcow2", "raw"]));
    assert!(is_as_written(&shows(&daemon, "first")));
    assert_eq!(daemon.delete("/v1/volumes/first").status, 204);
    let committed = daemon.begin(COMMIT, &json!({}));
    assert_eq!(committed["phase"], "Succeeded", "{committed}");
    only(&daemon, &names(&volume, &["raw"]));
    assert_eq!(daemon.volume("data")["format"], "raw");
    daemon.post(COMMIT, &json!({})).problem(409, "wrong_state");
    assert!(is_as_written(&std::fs::read(daemon.file(&volume)).unwrap()));
    // The next daemon and the next start have the same.
    daemon.crash_and_restart();
    start(&daemon);
    assert_eq!(images(&daemon), names(&volume, &["raw"]));
    kill(&daemon);
}

#[test]
fn a_volume_that_was_rebased_stands_alone() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let volume = three_files(&daemon);
    let rebased = daemon.begin(REBASE, &json!({}));
    assert_eq!(
        (&rebased["phase"], &rebased["kind"]),
        (&json!("Succeeded"), &json!("volume_rebase")),
        "{rebased}"
    );
    only(&daemon, &names(&volume, &["2.qcow2"]));
    let top = daemon.path("state/volumes").join(&names(&volume, &["2.qcow2"])[0]);
    let info = qemu_img(&["info", "--output=json", top.to_str().unwrap()]);
    assert!(info["backing-filename"].is_null(), "{info}");
    qemu_img(&["check", "-f", "qcow2", top.to_str().unwrap()]);
    assert!(is_as_written(&shows(&daemon, "copy")));
    daemon.post(REBASE, &json!({})).problem(409, "wrong_state");
    start(&daemon);
    assert_eq!(images(&daemon), names(&volume, &["2.qcow2"]));
    kill(&daemon);
}

#[test]
fn a_copy_is_as_large_as_measured() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let volume = daemon.make(&blank("data"));
    inspect(&daemon, &volume);
    let measure = |wanted: &Value| daemon.post("/v1/volumes/data/measure", wanted);
    let size = volume["size_bytes"].as_u64().unwrap();
    let raw = measure(&json!({"format": "raw"})).json();
    // Nothing was written yet.
    assert_eq!(raw, json!({"required_bytes": 0, "fully_allocated_bytes": size}));
    let theirs = qemu_img(&[
        "measure",
        "--output=json",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4k",
        "--size",
        &size.to_string(),
    ]);
    let ours = measure(&json!({"format": "qcow2", "cluster_size": "4Ki"})).json();
    assert_eq!(
        ours["fully_allocated_bytes"], theirs["fully-allocated"],
        "{ours} {theirs}"
    );
    measure(&json!({"format": "raw", "cluster_size": "4Ki"})).problem(422, "invalid_spec");
    measure(&json!({"format": "qcow2", "cluster_size": "3Ki"})).problem(422, "invalid_spec");
    daemon
        .post("/v1/volumes/none/measure", &json!({"format": "raw"}))
        .problem(404, "not_found");
}
