//! Root disks that are made to stand alone.

use serde_json::json;

use crate::harness::{Daemon, wait_for};
use crate::images::{DIGEST, seed};
use crate::launcher::says;
use crate::roots::root_disk;
use crate::snapshots::{ROOM, image, machine, nothing_is_left, of_vm, started, taken};
use crate::volumes::qemu_img;

const FLATTEN: &str = "/v1/vms/web/flatten";

/// The machine's disk leads to no image, and starts without one.
#[track_caller]
fn stands_alone(daemon: &Daemon) {
    let vm = daemon.vm("web");
    let root = &vm["status"]["root_disk"];
    assert_eq!(
        (&root["stands_alone"], &root["method"]),
        (&json!(true), &json!("copy")),
        "{vm}"
    );
    let info = qemu_img(&["info", "-U", "--output=json", root_disk(daemon, &vm).to_str().unwrap()]);
    assert!(info["backing-filename"].is_null(), "{info}");
    assert_eq!(image(daemon, "x-1")["used_by"], json!([]));
    assert_eq!(daemon.delete("/v1/images/x-1").status, 204);
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
}

#[test]
fn the_disk_of_a_machine_that_runs_stands_alone_and_its_image_can_go() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "");
    let before = taken(&daemon, "before", &of_vm("web"));
    started(&daemon, "web");
    let refused = daemon
        .post("/v1/vms/web/disks/root/stream", &json!({}))
        .problem(409, "wrong_state");
    assert!(
        refused["detail"].as_str().unwrap().contains("karat flatten web"),
        "{refused}"
    );
    let done = daemon.begin(FLATTEN, &json!({}));
    assert_eq!(
        (&done["phase"], &done["kind"]),
        (&json!("Succeeded"), &json!("vm_flatten")),
        "{done}"
    );
    stands_alone(&daemon);
    daemon.post(FLATTEN, &json!({})).problem(409, "wrong_state");
    // It is booted with what its image brought, and shows what it showed.
    daemon.crash_and_restart();
    assert_eq!(
        daemon.begin("/v1/vms/web/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
    started(&daemon, "web");
    let after = taken(&daemon, "after", &of_vm("web"));
    assert_eq!(
        (&after["digest"], &after["has_kernel"]),
        (&before["digest"], &json!(true))
    );
}

#[test]
fn the_disk_of_a_machine_that_stands_still_is_made_to_stand_alone_in_place() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "");
    let before = taken(&daemon, "before", &of_vm("web"));
    says(&daemon, &["flatten", "web"]);
    stands_alone(&daemon);
    assert_eq!(taken(&daemon, "after", &of_vm("web"))["digest"], before["digest"]);
    started(&daemon, "web");
    daemon.create("plain", "");
    daemon
        .post("/v1/vms/plain/flatten", &json!({}))
        .problem(409, "wrong_state");
}

#[test]
fn work_on_a_root_disk_goes_on_with_the_next_daemon_and_ends_when_told_to() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "stay");
    started(&daemon, "web");
    let answer = daemon.post(FLATTEN, &json!({}));
    assert_eq!(answer.status, 202, "{answer:?}");
    let operation = answer.header("location").unwrap().to_owned();
    let at_work = |daemon: &Daemon| {
        wait_for("progress", || {
            let progress = daemon.get(&operation).json()["progress"].clone();
            (progress["done_bytes"].as_u64() > Some(0)).then_some(())
        });
    };
    at_work(&daemon);
    daemon.post(FLATTEN, &json!({})).problem(409, "wrong_state");
    daemon.crash_and_restart();
    at_work(&daemon);
    daemon.terminate();
    daemon.restart();
    at_work(&daemon);
    assert_eq!(daemon.delete(&operation).status, 202);
    assert_eq!(daemon.over(&operation)["phase"], "Cancelled");
    let vm = daemon.vm("web");
    assert_eq!(vm["status"]["root_disk"]["method"], "overlay", "{vm}");
    daemon.delete(&format!("/v1/images/{DIGEST}")).problem(409, "in_use");
    nothing_is_left(&daemon);
}

#[test]
fn work_on_a_root_disk_that_daemons_end_over_is_given_up() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "stay");
    started(&daemon, "web");
    let answer = daemon.post(FLATTEN, &json!({}));
    let operation = answer.header("location").unwrap().to_owned();
    for _ in 0..2 {
        daemon.crash_and_restart();
        assert_eq!(daemon.get(&operation).json()["phase"], "Running");
    }
    daemon.crash_and_restart();
    let ended = daemon.over(&operation);
    assert_eq!(ended["phase"], "Failed", "{ended}");
    let told = ended["error"]["detail"].as_str().unwrap();
    assert!(told.contains("3 daemons in a row ended"), "{told}");
}
