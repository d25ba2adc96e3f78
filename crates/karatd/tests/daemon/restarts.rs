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
fn leftovers_of_unknown_machines_are_cleared() {
    let mut daemon = Daemon::start();
    let vm = daemon.run("web", "");
    daemon.terminate();
    let stray = "00000000-0000-4000-8000-000000000001";
    for dir in ["state/vms", "run/vms"] {
        std::fs::create_dir(daemon.path(dir).join(stray)).unwrap();
    }
    daemon.restart();
    for dir in ["state/vms", "run/vms"] {
        wait_for("the clearing", || {
            (!daemon.path(dir).join(stray).exists()).then_some(())
        });
        assert!(daemon.path(dir).join(vm["id"].as_str().unwrap()).exists());
    }
    assert_eq!(daemon.until("web", "Running")["status"]["pid"], vm["status"]["pid"]);
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
