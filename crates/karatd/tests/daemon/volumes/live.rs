//! Work on volumes under machines that run, and what is found when either side dies in it.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::blank;
use crate::harness::{Daemon, signal, wait_for};

/// A machine that behaves as `mode` says and runs with the volume `data`, whose first bytes are known.
pub(super) fn machine(daemon: &Daemon, mode: &str) -> Value {
    daemon.create("web", mode);
    let volume = daemon.make(&blank("data"));
    let file = std::fs::File::options().write(true).open(daemon.file(&volume)).unwrap();
    file.write_all_at(b"contents", 0).unwrap();
    let attached = daemon.post("/v1/vms/web/disks", &json!({"volume": "data"}));
    assert_eq!(attached.status, 200, "{attached:?}");
    start(daemon);
    volume
}

#[track_caller]
pub(super) fn start(daemon: &Daemon) {
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
}

/// Names of the images that the running machine was given or went on in, top first.
pub(super) fn images(daemon: &Daemon) -> Vec<String> {
    let disks = daemon.get("/v1/vms/web/disks").json();
    let layers = disks["items"][0]["layers"].as_array().unwrap().clone();
    let name = |layer: &Value| {
        PathBuf::from(layer["path"].as_str().unwrap())
            .file_name()
            .unwrap()
            .to_owned()
    };
    layers.iter().map(|layer| name(layer).into_string().unwrap()).collect()
}

pub(super) fn names(volume: &Value, suffixes: &[&str]) -> Vec<String> {
    let id = volume["id"].as_str().unwrap();
    suffixes.iter().map(|suffix| format!("{id}.{suffix}")).collect()
}

/// The files of volumes once those that nothing needs are gone.
#[track_caller]
pub(super) fn only(daemon: &Daemon, expected: &[String]) {
    let mut expected = expected.to_vec();
    expected.sort();
    wait_for(&format!("nothing but {expected:?}"), || {
        (daemon.files() == expected).then_some(())
    });
}

fn pid(daemon: &Daemon) -> u32 {
    u32::try_from(daemon.vm("web")["status"]["pid"].as_u64().unwrap()).unwrap()
}

pub(super) fn kill(daemon: &Daemon) {
    signal(pid(daemon), Signal::KILL);
    daemon.until("web", "Failed");
}

/// Asks a machine that is slow to begin for a snapshot, and kills the daemon before that has begun.
fn snapshot_without_daemon(daemon: &mut Daemon) -> String {
    let machine = pid(daemon);
    let answer = daemon.post(SNAPSHOT, &json!({}));
    assert_eq!(answer.status, 202, "{answer:?}");
    wait_for("the overlay", || {
        daemon
            .files()
            .iter()
            .any(|file| file.ends_with(".1.qcow2"))
            .then_some(())
    });
    // From the file to the message it takes microseconds.
    std::thread::sleep(Duration::from_millis(300));
    daemon.crash();
    assert!(is_alive(machine));
    wait_for("the end of the machine", || (!is_alive(machine)).then_some(()));
    answer.header("location").unwrap().to_owned()
}

/// Whether there is a process, and not only what is left of one.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Waits until an operation has done something.
fn progress(daemon: &Daemon, operation: &str) -> Value {
    wait_for("progress", || {
        let progress = daemon.get(operation).json()["progress"].clone();
        (progress["done_bytes"].as_u64() > Some(0)).then_some(progress)
    })
}

pub(super) const SNAPSHOT: &str = "/v1/vms/web/disks/data/snapshot";
const STREAM: &str = "/v1/vms/web/disks/data/stream";
const MIRROR: &str = "/v1/vms/web/disks/data/mirror";

#[test]
fn a_snapshot_is_the_volume_from_then_on_and_a_stream_makes_it_one_file_again() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let volume = machine(&daemon, "");
    daemon.post(STREAM, &json!({})).problem(409, "wrong_state");
    for count in 1..=2 {
        let taken = daemon.begin(SNAPSHOT, &json!({}));
        assert_eq!(
            (&taken["phase"], &taken["kind"]),
            (&json!("Succeeded"), &json!("volume_snapshot"))
        );
        assert_eq!(daemon.volume("data")["layers"].as_array().unwrap().len(), count + 1);
    }
    let three = names(&volume, &["2.qcow2", "1.qcow2", "raw"]);
    assert_eq!(images(&daemon), three);
    assert_eq!(daemon.volume("data")["format"], "qcow2");
    // The next daemon and the next start have the same.
    daemon.crash_and_restart();
    assert_eq!(images(&daemon), three);
    kill(&daemon);
    // All files are looked through, and the newest one is what is changed.
    let copied = daemon.begin("/v1/volumes/data/convert", &json!({"name": "whole", "format": "raw"}));
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    let whole = daemon.file(&daemon.volume("whole"));
    assert!(std::fs::read(whole).unwrap().starts_with(b"contents"));
    assert_eq!(daemon.delete("/v1/volumes/whole").status, 204);
    assert_eq!(daemon.begin("/v1/volumes/data/check", &json!({}))["phase"], "Succeeded");
    start(&daemon);
    assert_eq!(images(&daemon), three);
    only(&daemon, &three);
    let streamed = daemon.begin(STREAM, &json!({}));
    assert_eq!(streamed["phase"], "Succeeded", "{streamed}");
    only(&daemon, &names(&volume, &["2.qcow2"]));
    kill(&daemon);
    start(&daemon);
    assert_eq!(images(&daemon), names(&volume, &["2.qcow2"]));
    assert!(daemon.volume("data")["layers"].is_null());
    kill(&daemon);
    assert_eq!(daemon.delete("/v1/vms/web").status, 204);
    assert_eq!(daemon.delete("/v1/volumes/data").status, 204);
    only(&daemon, &[]);
}

#[test]
fn a_snapshot_that_a_machine_died_in_is_what_the_files_say() {
    for (mode, done) in [("die-before", false), ("die-after", true)] {
        for daemon_dies in [false, true] {
            let mut daemon = Daemon::start_with("reserved_space = 0");
            let late = format!("late-{mode}");
            let volume = machine(&daemon, if daemon_dies { &late } else { mode });
            let operation = if daemon_dies {
                let operation = snapshot_without_daemon(&mut daemon);
                daemon.restart();
                operation
            } else {
                let answer = daemon.post(SNAPSHOT, &json!({}));
                answer.header("location").unwrap().to_owned()
            };
            let ended = daemon.over(&operation);
            assert_eq!(
                ended["phase"],
                if done { "Succeeded" } else { "Failed" },
                "{mode}: {ended}"
            );
            daemon.until("web", "Failed");
            start(&daemon);
            let all: &[&str] = if done { &["1.qcow2", "raw"] } else { &["raw"] };
            assert_eq!(images(&daemon), names(&volume, all), "{mode}");
            only(&daemon, &names(&volume, all));
        }
    }
}

#[test]
fn a_machine_that_starts_before_its_snapshot_is_settled_has_the_right_top() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let volume = machine(&daemon, "late-die-after");
    let operation = snapshot_without_daemon(&mut daemon);
    // Somebody looks at the file, so that the daemon can not decide yet.
    let overlay = daemon.path("state/volumes").join(&names(&volume, &["1.qcow2"])[0]);
    let file = std::fs::File::open(overlay).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    daemon.restart();
    daemon.until("web", "Failed");
    assert_eq!(daemon.begin("/v1/vms/web/start", &json!({}))["phase"], "Failed");
    assert_eq!(daemon.get(&operation).json()["phase"], "Running");
    drop(file);
    start(&daemon);
    assert_eq!(images(&daemon)[0], names(&volume, &["1.qcow2"])[0]);
    assert_eq!(daemon.over(&operation)["phase"], "Succeeded");
}

#[test]
fn a_volume_is_moved_to_another_file_and_the_note_tells_when_nobody_else_can() {
    for (mode, done) in [("", true), ("die-before", false), ("die-after", true)] {
        for daemon_dies in [false, true] {
            let mut daemon = Daemon::start_with("reserved_space = 0");
            let volume = machine(&daemon, mode);
            let answer = daemon.post(MIRROR, &json!({}));
            assert_eq!(answer.status, 202, "{answer:?}");
            let operation = answer.header("location").unwrap();
            if daemon_dies && mode != "die-before" {
                progress(&daemon, operation);
                daemon.crash_and_restart();
            }
            let ended = daemon.over(operation);
            assert_eq!(
                ended["phase"],
                if done { "Succeeded" } else { "Failed" },
                "{mode}: {ended}"
            );
            if !mode.is_empty() {
                daemon.until("web", "Failed");
                start(&daemon);
            }
            let file = if done { "1.raw" } else { "raw" };
            assert_eq!(images(&daemon), names(&volume, &[file]), "{mode}");
            only(&daemon, &names(&volume, &[file]));
            let path = daemon.path("state/volumes").join(&names(&volume, &[file])[0]);
            assert!(std::fs::read(path).unwrap().starts_with(b"contents"));
        }
    }
}

#[test]
fn a_move_that_both_sides_died_in_has_not_happened() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let volume = machine(&daemon, "stay");
    let answer = daemon.post(MIRROR, &json!({"format": "qcow2"}));
    let operation = answer.header("location").unwrap();
    progress(&daemon, operation);
    let machine = pid(&daemon);
    daemon.crash();
    signal(machine, Signal::KILL);
    daemon.restart();
    assert_eq!(daemon.over(operation)["phase"], "Failed");
    start(&daemon);
    assert_eq!(images(&daemon), names(&volume, &["raw"]));
    only(&daemon, &names(&volume, &["raw"]));
}

#[test]
fn a_copy_is_a_volume_of_its_own_or_nothing() {
    for (mode, done) in [("", true), ("die-before", false)] {
        let mut daemon = Daemon::start_with("reserved_space = 0");
        let volume = machine(&daemon, mode);
        let answer = daemon.post(MIRROR, &json!({"name": "copy"}));
        assert_eq!(answer.status, 202, "{answer:?}");
        let operation = answer.header("location").unwrap();
        if done {
            progress(&daemon, operation);
            daemon.crash_and_restart();
        }
        let ended = daemon.over(operation);
        assert_eq!(
            ended["phase"],
            if done { "Succeeded" } else { "Failed" },
            "{mode}: {ended}"
        );
        let copy = daemon.volume("copy");
        if done {
            assert_eq!(
                (&copy["state"], &copy["format"]),
                (&json!("ready"), &json!("raw")),
                "{copy}"
            );
            assert!(std::fs::read(daemon.file(&copy)).unwrap().starts_with(b"contents"));
            assert_eq!(images(&daemon), names(&volume, &["raw"]));
        } else {
            assert_eq!(copy["state"], "failed", "{copy}");
            only(&daemon, &names(&volume, &["raw"]));
        }
    }
}

#[test]
fn work_on_a_disk_tells_how_far_it_is_outlives_the_daemon_and_can_be_cancelled() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let volume = machine(&daemon, "stay");
    let answer = daemon.post(MIRROR, &json!({}));
    let operation = answer.header("location").unwrap().to_owned();
    assert_eq!(progress(&daemon, &operation)["total_bytes"], 3 << 20);
    // One thing at a time, and nothing that would make the copy another one.
    for path in [SNAPSHOT, STREAM, MIRROR, "/v1/volumes/data/resize"] {
        let body = if path.ends_with("resize") {
            json!({"size": "8Mi"})
        } else {
            json!({})
        };
        daemon.post(path, &body).problem(409, "wrong_state");
    }
    daemon.terminate();
    daemon.restart();
    progress(&daemon, &operation);
    daemon.crash_and_restart();
    progress(&daemon, &operation);
    assert_eq!(daemon.delete(&operation).status, 202);
    let ended = daemon.over(&operation);
    assert_eq!(ended["phase"], "Cancelled", "{ended}");
    assert_eq!(images(&daemon), names(&volume, &["raw"]));
    only(&daemon, &names(&volume, &["raw"]));
    assert!(daemon.volume("data")["operation"].is_null());
}

#[test]
fn disks_of_a_machine_that_runs_come_and_go_on_the_scsi_bus_and_are_counted() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    machine(&daemon, "");
    daemon.make(&blank("more"));
    let refused = daemon.post("/v1/vms/web/disks", &json!({"volume": "more"}));
    refused.problem(409, "wrong_state");
    let attached = daemon.post("/v1/vms/web/disks", &json!({"volume": "more", "bus": "scsi"}));
    assert_eq!(attached.status, 200, "{attached:?}");
    assert_eq!(daemon.vm("web")["spec"]["disks"][1]["name"], "more");
    assert_eq!(daemon.get("/v1/vms/web/disks").json()["items"][1]["name"], "more");
    let limited = daemon.post("/v1/vms/web/disks/more/limits", &json!({"iops": 500}));
    assert_eq!(limited.json()["spec"]["disks"][1]["limits"]["iops"], 500, "{limited:?}");
    daemon
        .post("/v1/vms/web/disks/more/limits", &json!({"iops": 0}))
        .problem(422, "invalid_spec");
    let page = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for line in [
        "karat_disk_read_bytes_total{vm=\"web\",disk=\"data\"} 4096",
        "karat_disk_request_duration_seconds_bucket{vm=\"web\",disk=\"more\",kind=\"read\",le=\"0.000016000\"} 1",
        "karat_disk_request_duration_seconds_bucket{vm=\"web\",disk=\"more\",kind=\"read\",le=\"+Inf\"} 3",
        "karat_disk_request_duration_seconds_sum{vm=\"web\",disk=\"more\",kind=\"read\"} 1.500000000",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    daemon.crash_and_restart();
    assert_eq!(daemon.delete("/v1/vms/web/disks/more").status, 200);
    assert_eq!(daemon.vm("web")["spec"]["disks"].as_array().unwrap().len(), 1);
    assert_eq!(daemon.delete("/v1/volumes/more").status, 204);
    daemon.delete("/v1/vms/web/disks/more").problem(404, "not_found");
    daemon.delete("/v1/vms/web/disks/data").problem(409, "wrong_state");
}
