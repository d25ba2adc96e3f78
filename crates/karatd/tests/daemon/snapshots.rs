//! Disks of machines and volumes become images.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::images::{DIGEST, seed};
use crate::roots::root_disk;
use crate::volumes::qemu_img;

pub(crate) const ROOM: &str = "reserved_space = 0";

pub(crate) fn of_vm(vm: &str) -> Value {
    json!({"method": "snapshot", "vm": vm})
}

/// Begins to make an image; where its operation is.
#[track_caller]
fn begin(daemon: &Daemon, name: &str, from: &Value) -> String {
    let answer = daemon.post("/v1/images", &json!({"name": name, "import": from}));
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    answer.header("location").unwrap().to_owned()
}

#[track_caller]
pub(crate) fn taken(daemon: &Daemon, name: &str, from: &Value) -> Value {
    let done = daemon.over(&begin(daemon, name, from));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    let image = image(daemon, name);
    assert_eq!(image["state"], "active", "{image}");
    image
}

pub(crate) fn image(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/images/{name}")).json()
}

/// The sealed file of an image, which stands alone.
#[track_caller]
fn sealed(daemon: &Daemon, image: &Value) -> PathBuf {
    let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let path = daemon.path("state/images/sha256").join(hex).join("disk.qcow2");
    let info = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
    assert_eq!(info["backing-filename"], Value::Null, "{info}");
    qemu_img(&["check", "-q", path.to_str().unwrap()]);
    path
}

/// A machine made from the seeded image, with something of its own on its disk of 2 GiB.
pub(crate) fn machine(daemon: &Daemon, mode: &str) -> Value {
    let wish = json!({"name": "web", "image": DIGEST, "disk_size": "2Gi", "boot": {"cmdline": mode}});
    let answer = daemon.post("/v1/vms", &wish);
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    let vm = answer.json();
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -q -P 0x5a 1G 64k"])
        .arg(root_disk(daemon, &vm))
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    vm
}

#[track_caller]
pub(crate) fn started(daemon: &Daemon, vm: &str) {
    let operation = daemon.begin(&format!("/v1/vms/{vm}/start"), &json!({}));
    assert_eq!(operation["phase"], "Succeeded", "{operation}");
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    qemu_img(&["compare", one.to_str().unwrap(), other.to_str().unwrap()]);
}

#[track_caller]
pub(crate) fn nothing_is_left(daemon: &Daemon) {
    for part in ["tmp", "partial", "snapshots"] {
        wait_for(&format!("an empty {part}"), || {
            let left = std::fs::read_dir(daemon.path("state").join(part)).unwrap().count();
            (left == 0).then_some(())
        });
    }
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
}

/// Waits until a copy has begun.
fn copying(daemon: &Daemon, operation: &str) {
    wait_for("a copy", || {
        let progress = daemon.get(operation).json()["progress"].clone();
        (progress["step"] == "copy" && progress["done_bytes"].as_u64() > Some(0)).then_some(())
    });
}

#[test]
fn the_disk_of_a_machine_that_stands_still_becomes_an_image_that_needs_no_other() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let properties = json!({"os_distro": "debian", "hw_qemu_guest_agent": "no", "img_signature": "aGVsbG8=",
        "img_signature_certificate_uuid": "7f2b1bd5-0f0b-4f83-a2a1-6a5d3c0c7a10", "img_signature_hash_method": "SHA-256",
        "img_signature_key_type": "RSA-PSS"});
    let patch = json!({"properties": properties, "min_ram_mib": 64});
    let edited = daemon.request(
        "PATCH",
        "/v1/images/x-1",
        "Content-Type: application/merge-patch+json\r\n",
        &patch.to_string(),
    );
    assert_eq!(edited.status, 200, "{edited:?}");
    let vm = machine(&daemon, "");
    let gold = taken(&daemon, "gold", &of_vm("web"));
    assert_eq!(gold["virtual_size_bytes"], 2_u64 << 30);
    assert_eq!((&gold["min_disk_gib"], &gold["min_ram_mib"]), (&json!(2), &json!(64)));
    let told = json!({"os_distro": "debian", "hw_qemu_guest_agent": "no", "image_type": "snapshot",
        "instance_uuid": vm["id"], "base_image_ref": image(&daemon, "x-1")["id"]});
    assert_eq!(gold["properties"], told);
    assert_eq!(gold["has_kernel"], true, "{gold}");
    let file = sealed(&daemon, &gold);
    same(&root_disk(&daemon, &vm), &file);
    assert!(std::fs::metadata(&file).unwrap().len() < 8 << 20);

    // The same contents are the same image, and what is written of it wins.
    let wish =
        json!({"name": "again", "properties": {"os_distro": "fedora"}, "min_disk_gib": 3, "import": of_vm("web")});
    assert_eq!(daemon.begin("/v1/images", &wish)["phase"], "Succeeded");
    let again = image(&daemon, "again");
    assert_eq!(again["digest"], gold["digest"]);
    assert_eq!(
        (&again["properties"]["os_distro"], &again["min_disk_gib"]),
        (&json!("fedora"), &json!(3))
    );
    nothing_is_left(&daemon);

    // Neither the machine nor its image is needed by it.
    assert_eq!(daemon.delete("/v1/vms/web").status, 204);
    assert_eq!(daemon.delete("/v1/images/x-1").status, 204);
    let made = daemon.post("/v1/vms", &json!({"name": "second", "image": "gold", "memory": "64Mi"}));
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    started(&daemon, "second");
}

#[test]
fn a_machine_that_runs_copies_its_disk_and_goes_on() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let vm = machine(&daemon, "");
    started(&daemon, "web");
    let pid = daemon.vm("web")["status"]["pid"].clone();
    let live = taken(&daemon, "live", &of_vm("web"));
    assert_eq!(live["properties"]["instance_uuid"], vm["id"]);
    let file = sealed(&daemon, &live);
    let disks = daemon.get("/v1/vms/web/disks").json();
    assert_eq!(disks["items"][0]["layers"].as_array().unwrap().len(), 2, "{disks}");
    nothing_is_left(&daemon);
    assert_eq!(daemon.vm("web")["status"]["pid"], pid);
    // Nobody wrote, so it is the same as when it stands still.
    assert_eq!(
        daemon.begin("/v1/vms/web/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
    same(&root_disk(&daemon, &vm), &file);
    assert_eq!(taken(&daemon, "still", &of_vm("web"))["digest"], live["digest"]);
}

#[test]
fn a_copy_that_is_cancelled_or_cut_off_leaves_nothing() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    machine(&daemon, "stay");
    started(&daemon, "web");
    let operation = begin(&daemon, "one", &of_vm("web"));
    copying(&daemon, &operation);
    assert_eq!(daemon.delete(&operation).status, 202);
    assert_eq!(daemon.over(&operation)["phase"], "Cancelled");
    assert_eq!(image(&daemon, "one")["state"], "failed");
    nothing_is_left(&daemon);

    // The next daemon takes the disk anew, under the same operation.
    let operation = begin(&daemon, "two", &of_vm("web"));
    copying(&daemon, &operation);
    daemon.crash_and_restart();
    copying(&daemon, &operation);
    assert_eq!(std::fs::read_dir(daemon.path("state/snapshots")).unwrap().count(), 1);
    // One that is to end does not wait for it, and its successor goes on.
    daemon.terminate();
    daemon.restart();
    copying(&daemon, &operation);
    // The machine ends, and with it what it copied.
    assert_eq!(
        daemon.begin("/v1/vms/web/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
    let failed = daemon.over(&operation);
    assert_eq!(failed["phase"], "Failed", "{failed}");
    let two = image(&daemon, "two");
    assert_eq!(
        (&two["state"], &two["failure"]["code"], &two["digest"]),
        (&json!("failed"), &json!("snapshot_failed"), &Value::Null)
    );
    nothing_is_left(&daemon);
    // It can be asked for once more.
    let again = daemon.begin("/v1/images/two/import", &of_vm("web"));
    assert_eq!(again["phase"], "Succeeded", "{again}");
    assert_eq!(daemon.delete("/v1/images/one").status, 204);
    nothing_is_left(&daemon);
}

#[test]
fn volumes_become_images_too_and_what_can_not_is_told_at_once() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let volume = daemon.make(&json!({"name": "data", "size": "4Mi"}));
    let raw = daemon
        .path("state/volumes")
        .join(format!("{}.raw", volume["id"].as_str().unwrap()));
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.write_all_at(b"contents", 4096).unwrap();
    let standing = taken(&daemon, "standing", &json!({"method": "snapshot", "volume": "data"}));
    assert_eq!(
        (&standing["has_kernel"], &standing["min_disk_gib"]),
        (&json!(false), &json!(0))
    );
    same(&raw, &sealed(&daemon, &standing));
    // By the machine that runs with it, under either name.
    daemon.create("web", "");
    assert_eq!(daemon.post("/v1/vms/web/disks", &json!({"volume": "data"})).status, 200);
    started(&daemon, "web");
    for (name, from) in [
        ("by-volume", json!({"method": "snapshot", "volume": "data"})),
        ("by-disk", json!({"method": "snapshot", "vm": "web", "disk": "data"})),
    ] {
        assert_eq!(taken(&daemon, name, &from)["digest"], standing["digest"], "{name}");
    }
    let refused = |from: &Value, status, code| {
        let wish = json!({"name": "refused", "import": from});
        daemon.post("/v1/images", &wish).problem(status, code);
    };
    refused(&of_vm("nobody"), 404, "not_found");
    refused(&of_vm("web"), 404, "not_found");
    refused(&json!({"method": "snapshot"}), 422, "invalid_spec");
    refused(
        &json!({"method": "snapshot", "vm": "web", "volume": "data"}),
        422,
        "invalid_spec",
    );
    daemon.get("/v1/images/refused").problem(404, "not_found");
}

#[test]
fn a_guest_that_would_have_to_be_quieted_is_not_copied_while_it_runs() {
    let daemon = Daemon::start_seeded(ROOM, seed);
    let quiet = json!({"properties": {"os_require_quiesce": "yes"}});
    let edited = daemon.request(
        "PATCH",
        "/v1/images/x-1",
        "Content-Type: application/json\r\n",
        &quiet.to_string(),
    );
    assert_eq!(edited.status, 200, "{edited:?}");
    machine(&daemon, "");
    started(&daemon, "web");
    let failed = daemon.over(&begin(&daemon, "live", &of_vm("web")));
    assert_eq!(failed["error"]["code"], "wrong_state", "{failed}");
    assert!(failed.to_string().contains("os_require_quiesce"), "{failed}");
    assert_eq!(
        daemon.begin("/v1/vms/web/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
    taken(&daemon, "still", &of_vm("web"));
}
