//! Machines under daemons that come and go.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Daemon, signal, wait_for};

#[test]
fn machines_outlive_a_killed_daemon_and_are_found_again() {
    let mut daemon = Daemon::start();
    let (one, two) = (daemon.run("one", ""), daemon.run("two", ""));
    daemon.post("/v1/vms/two/pause", &json!({}));
    daemon.crash_and_restart();
    let (one_now, two_now) = (daemon.until("one", "Running"), daemon.until("two", "Paused"));
    assert_eq!(one_now["status"]["pid"], one["status"]["pid"]);
    assert_eq!(two_now["status"]["pid"], two["status"]["pid"]);
    wait_for("adoption", || {
        let events = daemon.get("/v1/events").json();
        let adopted = events["items"]
            .as_array()?
            .iter()
            .filter(|event| event["reason"] == "Adopted")
            .count();
        (adopted == 2).then_some(())
    });
    // They obey the new daemon as they did the old one.
    assert_eq!(
        daemon.post("/v1/vms/two/resume", &json!({})).json()["status"]["phase"],
        "Running"
    );
    assert_eq!(daemon.begin("/v1/vms/one/stop", &json!({}))["phase"], "Succeeded");
    let pid = u32::try_from(two["status"]["pid"].as_u64().unwrap()).unwrap();
    signal(pid, Signal::KILL);
    assert_eq!(daemon.until("two", "Failed")["status"]["reason"], "Killed");
}

#[test]
fn what_ended_while_no_daemon_looked_is_told_afterwards() {
    let mut daemon = Daemon::start();
    let (one, two) = (daemon.run("one", ""), daemon.run("two", ""));
    daemon.terminate();
    let pid = |vm: &serde_json::Value| u32::try_from(vm["status"]["pid"].as_u64().unwrap()).unwrap();
    signal(pid(&one), Signal::KILL);
    let id = two["id"].as_str().unwrap();
    let report = json!({
        "id": id, "reason": {"kind": "triple_fault"}, "message": "rip=0xfff0", "resets": 2, "at_unix_s": 1,
    });
    signal(pid(&two), Signal::KILL);
    std::fs::write(daemon.path("run/vms").join(id).join("report.json"), report.to_string()).unwrap();
    let gone = |vm| !std::path::Path::new(&format!("/proc/{}", pid(vm))).exists();
    wait_for("the end of both", || (gone(&one) && gone(&two)).then_some(()));
    daemon.restart();
    let (one, two) = (daemon.until("one", "Failed"), daemon.until("two", "Failed"));
    let told = one["status"]["message"].as_str().unwrap();
    assert!(
        told.contains("gone without a report: killed by SIGKILL or crashed"),
        "{one}"
    );
    assert_eq!(
        (&two["status"]["reason"], &two["status"]["message"]),
        (&json!("TripleFault"), &json!("rip=0xfff0"))
    );
    assert_eq!(std::fs::read_dir(daemon.path("run/vms")).unwrap().count(), 0);
}

#[test]
fn what_was_cut_off_is_cleared_and_what_lost_its_record_is_kept() {
    let mut daemon = Daemon::start();
    let (web, lost) = (daemon.run("web", ""), daemon.run("lost", ""));
    daemon.terminate();
    let [marked, unmarked] = [1, 2].map(|number| format!("00000000-0000-4000-8000-00000000000{number}"));
    for id in [&marked, &unmarked] {
        for dir in ["state/vms", "run/vms"] {
            std::fs::create_dir(daemon.path(dir).join(id)).unwrap();
        }
    }
    let id = |vm: &serde_json::Value| vm["id"].as_str().unwrap().to_owned();
    let marks = [marked.clone(), id(&web)].map(|id| daemon.path("state/vms").join(format!("{id}.unfinished")));
    for mark in &marks {
        std::fs::write(mark, "").unwrap();
    }
    // As when the registry was put back from an older copy.
    let database = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    let gone = database.execute("DELETE FROM vms WHERE name = 'lost'", []).unwrap();
    assert_eq!(gone, 1);
    drop(database);
    daemon.restart();
    assert!(marks.iter().all(|mark| !mark.exists()));
    for id in [&marked, &unmarked] {
        let run = daemon.path("run/vms").join(id);
        wait_for("the clearing", || (!run.exists()).then_some(()));
    }
    let kept = |id: &str| daemon.path("state/vms").join(id).exists();
    assert!(!kept(&marked) && kept(&unmarked) && kept(&id(&web)) && kept(&id(&lost)));
    assert_eq!(daemon.until("web", "Running")["status"]["pid"], web["status"]["pid"]);
    let runs = format!("/proc/{}", lost["status"]["pid"]);
    assert!(std::path::Path::new(&runs).exists(), "the guest goes on");
    assert!(daemon.path("run/vms").join(id(&lost)).join("control.sock").exists());
}

#[test]
fn leftovers_that_can_not_be_removed_do_not_keep_the_daemon_from_starting() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    // A directory where a file should be can not be removed as one; nor can a mount point.
    let unknown = daemon.path("state/volumes/00000000-0000-4000-8000-000000000001.part");
    std::fs::create_dir(&unknown).unwrap();
    let mounted = rustix::process::geteuid()
        .is_root()
        .then(|| daemon.path("state/tmp/import-1-1"));
    if let Some(path) = &mounted {
        std::fs::create_dir(path).unwrap();
        rustix::mount::mount("none", path, "tmpfs", rustix::mount::MountFlags::empty(), c"size=64k").unwrap();
    }
    daemon.restart();
    let answers = daemon.get("/v1/vms").status;
    if let Some(path) = &mounted {
        assert!(path.exists());
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    assert!(unknown.exists());
    assert_eq!(answers, 200);
}

#[test]
fn what_the_daemon_keeps_is_its_own_also_where_it_was_not() {
    use std::os::unix::fs::PermissionsExt;
    let mut daemon = Daemon::start();
    let dirs = ["vms", "volumes", "images", "images/sha256", "blobs", "tmp"];
    let files = ["karat.db", "images.lock"];
    let at = |daemon: &Daemon, name: &str| daemon.path("state").join(name);
    daemon.crash();
    for (names, mode) in [(&dirs[..], 0o755), (&files[..], 0o644)] {
        for name in names {
            std::fs::set_permissions(at(&daemon, name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    daemon.restart();
    daemon.create("web", "");
    let mode = |path: std::path::PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    for name in dirs {
        assert_eq!(mode(at(&daemon, name)), 0o700, "{name}");
    }
    for name in files.into_iter().chain(["karat.db-wal", "karat.db-shm"]) {
        assert_eq!(mode(at(&daemon, name)), 0o600, "{name}");
    }
    assert_eq!(mode(daemon.path("karat.sock")), 0o660);
}

#[test]
fn a_second_daemon_on_the_same_directories_refuses_to_start() {
    let daemon = Daemon::start();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_karatd"))
        .arg("--config")
        .arg(daemon.path("karat.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by another process"));
    assert_eq!(daemon.get("/healthz").status, 200);
}

#[test]
fn ending_waits_for_nobody_who_only_listens() {
    use std::io::{Read, Write};
    let mut daemon = Daemon::start();
    let mut stream = daemon.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: karat\r\nAccept: text/event-stream\r\n\r\n")
        .unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let asked = std::time::Instant::now();
    daemon.terminate();
    assert!(asked.elapsed() < std::time::Duration::from_secs(8));
}
