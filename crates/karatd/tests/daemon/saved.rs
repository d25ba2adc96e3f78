//! Snapshots of machines, and machines that go on from them.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, signal, wait_for};
use crate::images::{DIGEST, seed};
use crate::launcher::says;
use crate::roots::{contents, root_disk};
use crate::volumes::kills::{can_run, karat_vmm, payload};
use crate::volumes::qemu_img;

const ROOM: &str = "reserved_space = 0";
const START: &str = "/v1/vms/web/start";

/// A machine from the seeded image, which behaves as `mode` says.
fn machine(daemon: &Daemon, mode: &str) -> Value {
    let wish = json!({"name": "web", "image": DIGEST, "disk_size": "2Mi", "boot": {"cmdline": mode}});
    let answer = daemon.post("/v1/vms", &wish);
    assert_eq!(answer.status, 201, "{answer:?}");
    start(daemon, "web");
    answer.json()
}

#[track_caller]
fn start(daemon: &Daemon, vm: &str) {
    let started = daemon.begin(&format!("/v1/vms/{vm}/start"), &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
}

#[track_caller]
fn stop(daemon: &Daemon, vm: &str) {
    let stopped = daemon.begin(&format!("/v1/vms/{vm}/stop"), &json!({"force": true}));
    assert_eq!(stopped["phase"], "Succeeded", "{stopped}");
}

#[track_caller]
fn take(daemon: &Daemon, name: &str) -> Value {
    let taken = daemon.begin("/v1/snapshots", &json!({"vm": "web", "name": name}));
    assert_eq!(
        (&taken["phase"], &taken["kind"]),
        (&json!("Succeeded"), &json!("snapshot_create")),
        "{taken}"
    );
    let snapshot = daemon.get(&format!("/v1/snapshots/{name}")).json();
    assert_eq!(snapshot["state"], "ready", "{snapshot}");
    snapshot
}

#[track_caller]
fn restore(daemon: &Daemon, snapshot: &str, wish: &Value) -> Value {
    let started = daemon.begin(&format!("/v1/snapshots/{snapshot}/restore"), wish);
    assert_eq!(started["phase"], "Succeeded", "{started}");
    daemon.vm(wish["name"].as_str().unwrap())
}

/// Names in a directory of the daemon's state.
fn names(daemon: &Daemon, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(daemon.path("state").join(directory)).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn directory_of(vm: &Value) -> String {
    format!("vms/{}", vm["id"].as_str().unwrap())
}

/// Writes a byte to a root disk that nobody has open.
fn write(daemon: &Daemon, vm: &Value, pattern: &str, offset: &str) {
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &format!("write -q -P {pattern} {offset} 64k")])
        .arg(root_disk(daemon, vm))
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
}

/// The first bytes of three places of a root disk.
fn firsts(daemon: &Daemon, vm: &Value) -> [u8; 3] {
    let shown = contents(daemon, &root_disk(daemon, vm));
    [0, 64 << 10, 128 << 10].map(|at| shown[at])
}

#[test]
fn a_machine_goes_on_in_a_new_one_while_the_old_one_runs() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    let web = machine(&daemon, "");
    let snapshot = take(&daemon, "one");
    assert_eq!(daemon.vm("web")["status"]["phase"], "Running");
    assert_eq!(
        (&snapshot["vm"], &snapshot["image_digest"], &snapshot["memory_bytes"]),
        (&json!("web"), &json!(DIGEST), &json!(512 << 20)),
        "{snapshot}"
    );
    assert!(snapshot["usage_bytes"].as_u64().unwrap() >= 8192, "{snapshot}");
    let two = restore(&daemon, "one", &json!({"name": "two"}));
    let three = restore(&daemon, "one", &json!({"name": "three", "eager": true}));
    for vm in ["two", "three", "web"] {
        assert_eq!(daemon.vm(vm)["status"]["phase"], "Running", "{vm}");
        // Its memory is for one start only.
        assert!(!names(&daemon, &directory_of(&daemon.vm(vm))).contains(&"saved".to_owned()));
    }
    assert_eq!(two["status"]["root_disk"]["format"], "qcow2");
    // Each has a disk of its own on top of what was frozen.
    ["web", "two", "three"].into_iter().for_each(|vm| stop(&daemon, vm));
    for (vm, pattern, offset) in [(&web, "1", "0"), (&two, "2", "64k"), (&three, "3", "128k")] {
        write(&daemon, vm, pattern, offset);
        qemu_img(&["check", "-q", root_disk(&daemon, vm).to_str().unwrap()]);
    }
    let all = [&web, &two, &three].map(|vm| firsts(&daemon, vm));
    assert_eq!(all, [[1, 7, 7], [7, 2, 7], [7, 7, 3]]);
    // They boot now; snapshot and original go, and the copies stay whole.
    daemon.crash_and_restart();
    ["web", "two", "three"].into_iter().for_each(|vm| start(&daemon, vm));
    let refused = daemon.delete(&format!("/v1/images/{DIGEST}")).problem(409, "in_use");
    assert!(
        refused["detail"].as_str().unwrap().contains("snapshots/one"),
        "{refused}"
    );
    for path in [
        "/v1/snapshots/one",
        "/v1/vms/web?force=true",
        "/v1/vms/three?force=true",
    ] {
        assert_eq!(daemon.delete(path).status, 204, "{path}");
    }
    assert_eq!(names(&daemon, "saved"), [""; 0]);
    stop(&daemon, "two");
    assert_eq!(firsts(&daemon, &two), [7, 2, 7]);
    start(&daemon, "two");
    assert_eq!(daemon.delete("/v1/vms/two?force=true").status, 204);
    assert_eq!(daemon.delete(&format!("/v1/images/{DIGEST}")).status, 204);
}

#[test]
fn a_machine_that_is_left_stopped_goes_on_at_its_first_start() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "");
    assert_eq!(daemon.post("/v1/vms/web/pause", &json!({})).status, 200);
    take(&daemon, "one");
    // It was paused before.
    assert_eq!(daemon.vm("web")["status"]["phase"], "Paused");
    let made = daemon.post("/v1/snapshots/one/restore", &json!({"name": "two", "stopped": true}));
    assert_eq!((made.status, made.header("location")), (201, Some("/v1/vms/two")));
    assert_eq!(daemon.delete("/v1/snapshots/one").status, 204);
    daemon.crash_and_restart();
    let two = daemon.vm("two");
    assert_eq!(two["status"]["phase"], "Stopped");
    assert!(names(&daemon, &directory_of(&two)).contains(&"saved".to_owned()));
    start(&daemon, "two");
    assert!(!names(&daemon, &directory_of(&two)).contains(&"saved".to_owned()));
}

#[test]
fn what_can_not_be_saved_or_restored_is_refused_with_a_reason() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let ask = |body: &Value| daemon.post("/v1/snapshots", body);
    ask(&json!({"vm": "none"})).problem(404, "not_found");
    machine(&daemon, "");
    for name in ["Bad Name", "6f9619ff-8b86-4d01-b42d-00c04fc964ff"] {
        let problem = ask(&json!({"vm": "web", "name": name})).problem(422, "invalid_spec");
        assert_eq!(problem["errors"][0]["field"], "name", "{problem}");
    }
    take(&daemon, "one");
    ask(&json!({"vm": "web", "name": "one"})).problem(409, "name_taken");
    let restore = |body: &Value| daemon.post("/v1/snapshots/one/restore", body);
    restore(&json!({"name": "web"})).problem(409, "name_taken");
    let problem = restore(&json!({"name": "two", "networks": [{"tap": "t0"}]})).problem(422, "invalid_spec");
    assert_eq!(problem["errors"][0]["field"], "networks", "{problem}");
    daemon
        .post("/v1/snapshots/none/restore", &json!({"name": "two"}))
        .problem(404, "not_found");
    assert_eq!(names(&daemon, "vms").len(), 1);
    stop(&daemon, "web");
    let failed = daemon.begin("/v1/snapshots", &json!({"vm": "web"}));
    assert_eq!(failed["error"]["code"], "wrong_state", "{failed}");
    // A second disk that is written is no part of a snapshot.
    let disk = daemon.path("state/files/disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let attached = daemon.post("/v1/vms/web/disks", &json!({"path": disk}));
    assert_eq!(attached.status, 200, "{attached:?}");
    start(&daemon, "web");
    let problem = ask(&json!({"vm": "web"})).problem(422, "invalid_spec");
    assert!(
        problem["errors"][0]["message"].as_str().unwrap().contains("disk1"),
        "{problem}"
    );
    let stale = daemon.request("DELETE", "/v1/snapshots/one", "If-Match: \"99\"\r\n", "");
    stale.problem(412, "revision_mismatch");
    assert_eq!(names(&daemon, "saved").len(), 1);
}

#[test]
fn a_machine_whose_snapshot_fails_goes_on() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let web = machine(&daemon, "save-full");
    let failed = daemon.begin("/v1/snapshots", &json!({"vm": "web", "name": "one"}));
    assert_eq!(
        (&failed["phase"], &failed["error"]["code"]),
        (&json!("Failed"), &json!("no_space")),
        "{failed}"
    );
    assert_eq!(daemon.vm("web")["status"]["phase"], "Running");
    assert_eq!(names(&daemon, "saved"), [""; 0]);
    daemon.get("/v1/snapshots/one").problem(404, "not_found");
    // Its disk has one more layer, and is what it was.
    stop(&daemon, "web");
    assert!(
        contents(&daemon, &root_disk(&daemon, &web))[..1 << 20]
            .iter()
            .all(|byte| *byte == 7)
    );
    start(&daemon, "web");
    // One that ends in the middle of it is told apart from that.
    assert_eq!(daemon.delete("/v1/vms/web?force=true").status, 204);
    machine(&daemon, "save-die");
    let failed = daemon.begin("/v1/snapshots", &json!({"vm": "web", "name": "one"}));
    assert_eq!(failed["error"]["code"], "machine_failed", "{failed}");
    daemon.until("web", "Failed");
    start(&daemon, "web");
    assert_eq!(names(&daemon, "saved"), [""; 0]);
}

#[test]
fn a_held_machine_is_changed_by_nobody_and_a_cancelled_snapshot_lets_it_go_on() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "save-slow");
    let answer = daemon.post("/v1/snapshots", &json!({"vm": "web", "name": "one"}));
    let operation = answer.header("location").unwrap().to_owned();
    daemon.until("web", "Paused");
    for verb in ["resume", "stop", "reset"] {
        let refused = daemon
            .post(&format!("/v1/vms/web/{verb}"), &json!({}))
            .problem(409, "wrong_state");
        assert!(refused["detail"].as_str().unwrap().contains("snapshot"), "{refused}");
    }
    daemon.delete("/v1/snapshots/one").problem(409, "wrong_state");
    daemon
        .post("/v1/snapshots/one/restore", &json!({"name": "two"}))
        .problem(409, "wrong_state");
    assert_eq!(daemon.delete(&operation).status, 202);
    assert_eq!(daemon.over(&operation)["phase"], "Cancelled");
    assert_eq!(daemon.vm("web")["status"]["phase"], "Running");
    assert_eq!(names(&daemon, "saved"), [""; 0]);
    take(&daemon, "one");
}

/// Kills the daemon in each step of a snapshot: the next one lets the machine go on, and nothing is left.
#[test]
fn a_daemon_that_dies_in_a_snapshot_leaves_a_machine_that_runs() {
    for mode in ["late-", "save-slow"] {
        let mut daemon = Daemon::start_seeded(ROOM, seed);
        let web = machine(&daemon, mode);
        let answer = daemon.post("/v1/snapshots", &json!({"vm": "web", "name": "one"}));
        let operation = answer.header("location").unwrap().to_owned();
        let step = if mode == "late-" { "freeze" } else { "save" };
        wait_for(step, || {
            let now = daemon.get(&operation).json();
            (now["progress"]["step"] == step).then_some(())
        });
        daemon.crash_and_restart();
        let ended = daemon.over(&operation);
        assert_eq!(ended["phase"], "Failed", "{ended}");
        daemon.until("web", "Running");
        daemon.get("/v1/snapshots/one").problem(404, "not_found");
        wait_for("an empty directory", || {
            names(&daemon, "saved").is_empty().then_some(())
        });
        // What it was asked for before reaches it still, or did not: either way its disk is whole.
        std::thread::sleep(Duration::from_millis(1500));
        stop(&daemon, "web");
        start(&daemon, "web");
        assert!(
            !names(&daemon, &directory_of(&web))
                .iter()
                .any(|name| name.starts_with("next-"))
        );
        take(&daemon, "one");
        stop(&daemon, "web");
        assert!(
            contents(&daemon, &root_disk(&daemon, &web))[..1 << 20]
                .iter()
                .all(|byte| *byte == 7)
        );
    }
}

#[test]
fn flattening_makes_one_file_of_what_snapshots_froze() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let web = machine(&daemon, "");
    take(&daemon, "one");
    take(&daemon, "two");
    let frozen = |vm: &Value| {
        let names = names(&daemon, &directory_of(vm)).into_iter();
        names.filter(|name| name.starts_with("frozen-")).count()
    };
    assert_eq!(frozen(&web), 2);
    let copy = restore(&daemon, "two", &json!({"name": "copy"}));
    assert_eq!(frozen(&copy), 2);
    stop(&daemon, "copy");
    let done = daemon.begin("/v1/vms/copy/flatten", &json!({}));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    assert_eq!((frozen(&copy), frozen(&web)), (0, 2));
    assert!(
        contents(&daemon, &root_disk(&daemon, &copy))[..1 << 20]
            .iter()
            .all(|byte| *byte == 7)
    );
    start(&daemon, "copy");
}

#[test]
fn snapshots_are_typed() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "");
    assert_eq!(says(&daemon, &["snapshot", "create", "web", "--name", "one"]), "one\n");
    assert!(says(&daemon, &["snapshot", "create", "web"]).starts_with("web-20"));
    let list = says(&daemon, &["snapshot", "ls"]);
    assert!(list.lines().count() == 3 && list.contains("one"), "{list}");
    assert!(says(&daemon, &["snapshot", "show", "one"]).contains("512.0 MiB"));
    assert_eq!(
        says(&daemon, &["snapshot", "restore", "one", "two", "--eager"]),
        "two\n"
    );
    assert_eq!(daemon.vm("two")["status"]["phase"], "Running");
    says(&daemon, &["snapshot", "rm", "one"]);
    assert_eq!(says(&daemon, &["snapshot", "ls"]).lines().count(), 2);
}

/// What a machine has said on its console.
fn log(daemon: &Daemon, vm: &Value) -> String {
    let path = daemon.path("state").join(directory_of(vm)).join("log/console.log");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Numbers that a machine has counted, each in a whole line.
fn counted(log: &str) -> Vec<u64> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let lines = whole.lines();
    lines
        .filter_map(|line| line.strip_prefix("count ")?.trim().parse().ok())
        .collect()
}

#[track_caller]
fn counts_on(daemon: &Daemon, vm: &Value) -> Vec<u64> {
    let before = counted(&log(daemon, vm)).len();
    wait_for("counts", || {
        let log = log(daemon, vm);
        assert!(!log.contains("FAIL"), "{log}");
        Some(counted(&log)).filter(|counted| counted.len() >= before + 10)
    })
}

/// Has a guest look at all it has counted, in memory and on its disk.
#[track_caller]
fn passes(daemon: &Daemon, vm: &Value) {
    let socket: PathBuf = daemon
        .path("run/vms")
        .join(vm["id"].as_str().unwrap())
        .join("console.sock");
    let mut console = UnixStream::connect(socket).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    console.write_all(b"q").unwrap();
    wait_for("PASS", || {
        let _ = console.read(&mut [0; 4096]); // The log tells.
        log(daemon, vm).contains("PASS count").then_some(())
    });
}

/// A real guest counts in memory and on its disk; what goes on from snapshots goes on from there, each by itself.
#[test]
fn a_real_guest_goes_on_from_where_it_was() {
    if !can_run() {
        return;
    }
    let kernel = payload::tiny_guest();
    let mut daemon = Daemon::start_with_vmm(&karat_vmm(), ROOM, |state| {
        seed(state);
        std::fs::copy(kernel, state.join("files/kernel")).unwrap();
    });
    let boot = json!({"kernel": daemon.path("state/files/kernel"), "cmdline": "test=count disk=yes"});
    let wish = json!({"name": "web", "image": DIGEST, "disk_size": "4Mi", "memory": "64Mi", "cpus": 2, "boot": boot});
    assert_eq!(daemon.post("/v1/vms", &wish).status, 201);
    assert_eq!(daemon.begin(START, &json!({}))["phase"], "Succeeded");
    let web = daemon.vm("web");
    counts_on(&daemon, &web);
    let snapshot = take(&daemon, "one");
    let memory = daemon
        .path("state/saved")
        .join(snapshot["id"].as_str().unwrap())
        .join("memory");
    let memory = std::fs::metadata(memory).unwrap();
    assert!(memory.blocks() * 512 < memory.len() / 2, "zero pages take no room");
    let at = counted(&log(&daemon, &web)).len();
    counts_on(&daemon, &web);
    let mut machines = vec![web.clone()];
    for (name, eager) in [("two", false), ("three", true), ("four", false)] {
        machines.push(restore(&daemon, "one", &json!({"name": name, "eager": eager})));
    }
    assert_eq!(daemon.delete("/v1/snapshots/one").status, 204);
    for vm in &machines[1..] {
        let counts = counts_on(&daemon, vm);
        let first = usize::try_from(counts[0]).unwrap();
        assert!((1..=at + 1).contains(&first), "{first} of {at}");
        assert!(counts.windows(2).all(|two| two[1] == two[0] + 1), "{counts:?}");
        assert!(vm["status"]["start_to_guest_us"].as_u64().unwrap() > 0, "{vm}");
    }
    // A copy of a copy, and of one that was found again.
    daemon.crash_and_restart();
    let taken = daemon.begin("/v1/snapshots", &json!({"vm": "two", "name": "again"}));
    assert_eq!(taken["phase"], "Succeeded", "{taken}");
    machines.push(restore(&daemon, "again", &json!({"name": "five"})));
    let all = counted(&log(&daemon, &web));
    assert!(
        all.iter().enumerate().all(|(place, count)| place as u64 == *count),
        "{all:?}"
    );
    for vm in &machines {
        counts_on(&daemon, vm);
        passes(&daemon, vm);
    }
}

#[test]
fn memory_that_is_damaged_is_told_where_it_is_read() {
    if !can_run() {
        return;
    }
    let kernel = payload::tiny_guest();
    let daemon = Daemon::start_with_vmm(&karat_vmm(), ROOM, |state| {
        std::fs::copy(kernel, state.join("files/kernel")).unwrap();
    });
    let web = daemon.run("web", "test=count");
    counts_on(&daemon, &web);
    let snapshot = take(&daemon, "one");
    let memory = daemon
        .path("state/saved")
        .join(snapshot["id"].as_str().unwrap())
        .join("memory");
    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[0x10_0000] ^= 1;
    std::fs::write(&memory, bytes).unwrap();
    let failed = daemon.begin("/v1/snapshots/one/restore", &json!({"name": "two", "eager": true}));
    assert_eq!(failed["phase"], "Failed", "{failed}");
    let told = failed["error"]["detail"].as_str().unwrap();
    assert!(told.contains("memory of the saved machine is damaged"), "{told}");
    assert_eq!(daemon.vm("two")["status"]["phase"], "Failed");
    let pid = u32::try_from(daemon.vm("web")["status"]["pid"].as_u64().unwrap()).unwrap();
    signal(pid, Signal::KILL);
    daemon.until("web", "Failed");
}
