//! Root disks: what they are made of, and what that keeps in place.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::images::{DIGEST, DISK_BYTES, seed};
use crate::stores::{ARCHIVE, until};
use crate::volumes::qemu_img;

/// An image whose sealed disk is qcow2.
const PACKED: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
/// Size of its disk, bytes.
const PACKED_BYTES: usize = 8 << 20;
const ROOM: &str = "reserved_space = 0";

/// The file of a machine's root disk.
pub(crate) fn root_disk(daemon: &Daemon, vm: &Value) -> PathBuf {
    let format = vm["status"]["root_disk"]["format"].as_str().unwrap();
    let directory = daemon.path("state/vms").join(vm["id"].as_str().unwrap());
    directory.join(format!("root.{format}"))
}

/// What the disk in an image shows, which `qemu-img` finds no fault in.
pub(crate) fn contents(daemon: &Daemon, image: &Path) -> Vec<u8> {
    let (raw, image, format) = (
        daemon.path("shown"),
        image.to_str().unwrap(),
        image.extension().unwrap().to_str().unwrap(),
    );
    if format == "qcow2" {
        qemu_img(&["check", "-q", "-f", format, image]);
    }
    qemu_img(&["convert", "-f", format, "-O", "raw", image, raw.to_str().unwrap()]);
    std::fs::read(raw).unwrap()
}

/// Puts a second image into a store that is not open.
fn seed_packed(state: &Path) {
    seed(state);
    let directory = state.join("images/sha256").join(PACKED.trim_start_matches("sha256:"));
    std::fs::create_dir_all(&directory).unwrap();
    let disk = directory.join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "8M"]);
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -q -P 0x5a 1M 2M"])
        .arg(&disk)
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    std::fs::write(directory.join("kernel"), "kernel").unwrap();
    let manifest = json!({"version": 2, "image": {
        "digest": PACKED, "index_digest": null, "reference": "q.io/demo/packed:1",
        "disk": {"source_path": "", "source_format": "qcow2", "source_bytes": PACKED_BYTES, "virtual_bytes": PACKED_BYTES,
            "format": "qcow2", "file_bytes": disk.metadata().unwrap().len()},
        "kernel": {"source_path": "boot/vmlinuz", "size_bytes": 6},
        "initrd": null, "cmdline": null, "imported_at_s": 1_790_000_000,
    }});
    std::fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
}

fn is_packed(bytes: &[u8]) -> bool {
    let filled = 1 << 20..3 << 20;
    let is_right = |(at, byte): (usize, &u8)| *byte == if filled.contains(&at) { 0x5a } else { 0 };
    bytes.iter().enumerate().all(is_right)
}

#[track_caller]
fn made(daemon: &Daemon, spec: &Value) -> Value {
    let answer = daemon.post("/v1/vms", spec);
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

#[track_caller]
fn started(daemon: &Daemon, vm: &str) {
    let operation = daemon.begin(&format!("/v1/vms/{vm}/start"), &json!({}));
    assert_eq!(operation["phase"], "Succeeded", "{operation}");
}

/// Names and formats of the files of a running machine's disk, top first.
fn layers(daemon: &Daemon, vm: &str, disk: usize) -> Vec<(String, String)> {
    let disks = daemon.get(&format!("/v1/vms/{vm}/disks")).json();
    let layers = disks["items"][disk]["layers"].as_array().unwrap().clone();
    let told = layers.iter().map(|layer| {
        let path = Path::new(layer["path"].as_str().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, layer["format"].as_str().unwrap().to_owned())
    });
    told.collect()
}

fn pairs<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
    let owned = expected.map(|(name, format)| (name.to_owned(), format.to_owned()));
    owned.into()
}

#[test]
fn machines_run_on_one_sealed_image_which_stays_until_the_last_is_gone() {
    let mut daemon = Daemon::start_seeded(ROOM, seed);
    let sealed = daemon
        .path("state/images/sha256")
        .join(DIGEST.trim_start_matches("sha256:"))
        .join("disk.raw");
    for name in ["one", "two"] {
        let vm = made(&daemon, &json!({"name": name, "image": DIGEST}));
        let info = qemu_img(&["info", "--output=json", root_disk(&daemon, &vm).to_str().unwrap()]);
        assert!(
            info["backing-filename"].as_str().unwrap().starts_with("../../images/"),
            "{info}"
        );
        assert!(info["actual-size"].as_u64().unwrap() < DISK_BYTES as u64 / 2, "{info}");
        started(&daemon, name);
        let chain = pairs([("root.qcow2", "qcow2"), ("disk.raw", "raw")]);
        assert_eq!(layers(&daemon, name, 0), chain);
    }
    let image = format!("/v1/images/{DIGEST}");
    let refused = |daemon: &Daemon| {
        let problem = daemon.delete(&image).problem(409, "in_use");
        problem["detail"].as_str().unwrap().to_owned()
    };
    assert!(refused(&daemon).contains("used by one, two"));
    for name in ["one", "two"] {
        daemon.begin(&format!("/v1/vms/{name}/stop"), &json!({"force": true}));
    }
    daemon.crash_and_restart();
    assert!(refused(&daemon).contains("used by one, two"));
    assert_eq!(daemon.get(&image).json()["used_by"], json!(["one", "two"]));
    assert_eq!(daemon.delete("/v1/vms/one").status, 204);
    assert!(refused(&daemon).contains("used by two;"));
    assert!(std::fs::read(&sealed).unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(daemon.delete("/v1/vms/two").status, 204);
    assert_eq!(daemon.delete(&image).status, 204);
    assert!(!sealed.exists());
}

#[test]
fn disks_are_made_in_the_way_of_the_configuration_and_it_is_told_why() {
    for (way, methods, format) in [
        ("overlay", vec!["overlay"], "qcow2"),
        ("reflink", vec!["reflink", "copy"], "raw"),
        ("copy", vec!["copy"], "raw"),
    ] {
        let daemon = Daemon::start_seeded(&format!("{ROOM}\nroot_disks = {way:?}"), seed);
        let vm = made(&daemon, &json!({"name": "web", "image": DIGEST, "disk_size": "3Mi"}));
        let root = &vm["status"]["root_disk"];
        assert!(methods.contains(&root["method"].as_str().unwrap()), "{root}");
        assert_eq!(
            (&root["format"], &root["method"]),
            (&json!(format), &vm["status"]["clone_method"])
        );
        let reason = root["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("root_disks is {way}: ")), "{reason}");
        let bytes = contents(&daemon, &root_disk(&daemon, &vm));
        assert_eq!(bytes.len(), 3 << 20);
        assert!(bytes[..DISK_BYTES].iter().all(|byte| *byte == 7));
        assert!(bytes[DISK_BYTES..].iter().all(|byte| *byte == 0));
        started(&daemon, "web");
        let mut chain = pairs([(format!("root.{format}").as_str(), format)]);
        chain.extend(
            (way == "overlay")
                .then(|| pairs([("disk.raw", "raw")]))
                .into_iter()
                .flatten(),
        );
        assert_eq!(layers(&daemon, "web", 0), chain);
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let label = |method: &&str| metrics.contains(&format!("clone=\"{method}\""));
        assert!(methods.iter().any(label), "{metrics}");
    }
}

#[test]
fn machines_and_volumes_are_made_from_images_that_are_sealed_as_qcow2() {
    for way in ["overlay", "copy"] {
        let daemon = Daemon::start_seeded(&format!("{ROOM}\nroot_disks = {way:?}"), seed_packed);
        let vm = made(&daemon, &json!({"name": "web", "image": PACKED, "disk_size": "16Mi"}));
        let bytes = contents(&daemon, &root_disk(&daemon, &vm));
        assert_eq!(bytes.len(), 16 << 20);
        assert!(is_packed(&bytes));
        let sharing = daemon.make(&json!({"name": "data", "source": {"kind": "image", "image": PACKED}}));
        assert_eq!(sharing["image_digest"], PACKED, "{sharing}");
        let copied =
            json!({"name": "own", "format": "raw", "source": {"kind": "image", "image": PACKED, "copy": true}});
        let copied = daemon.make(&copied);
        let volumes = daemon.path("state/volumes");
        let file = |volume: &Value, format: &str| volumes.join(format!("{}.{format}", volume["id"].as_str().unwrap()));
        for (volume, format) in [(&sharing, "qcow2"), (&copied, "raw")] {
            let bytes = contents(&daemon, &file(volume, format));
            assert_eq!(bytes.len(), PACKED_BYTES);
            assert!(is_packed(&bytes), "{volume}");
        }
        let attached = daemon.post("/v1/vms/web/disks", &json!({"volume": "data"}));
        assert_eq!(attached.status, 200, "{attached:?}");
        started(&daemon, "web");
        let sealed = pairs([("disk.qcow2", "qcow2")]);
        let mut chain = pairs([("root.qcow2", "qcow2")]);
        chain.extend(if way == "overlay" { sealed.clone() } else { Vec::new() });
        assert_eq!(layers(&daemon, "web", 0), chain);
        assert_eq!(layers(&daemon, "web", 1)[1..], sealed);
    }
}

#[test]
fn a_machine_from_before_its_disk_was_recorded_starts_as_it_did() {
    let mut daemon = Daemon::start_seeded(&format!("{ROOM}\nroot_disks = \"copy\""), seed);
    let vm = made(&daemon, &json!({"name": "old", "image": DIGEST, "disk_size": "2Mi"}));
    daemon.terminate();
    let records = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    let changed = records.execute("UPDATE vms SET status = json_remove(status, '$.root_disk')", []);
    assert_eq!(changed.unwrap(), 1);
    drop(records);
    daemon.restart();
    let found = daemon.vm("old");
    let root = &found["status"]["root_disk"];
    assert_eq!(
        (&root["method"], &root["format"]),
        (&json!("copy"), &json!("raw")),
        "{found}"
    );
    assert!(root_disk(&daemon, &vm).exists());
    started(&daemon, "old");
    assert_eq!(layers(&daemon, "old", 0), pairs([("root.raw", "raw")]));
    daemon.begin("/v1/vms/old/stop", &json!({}));
    assert_eq!(daemon.vm("old")["status"]["root_disk"], *root);
}

#[test]
fn a_root_disk_that_leads_to_anything_but_its_image_is_not_opened() {
    let daemon = Daemon::start_seeded(ROOM, seed_packed);
    let vm = made(&daemon, &json!({"name": "web", "image": DIGEST}));
    let disk = root_disk(&daemon, &vm);
    std::fs::write(disk.with_file_name("other"), vec![1; DISK_BYTES]).unwrap();
    let hex = PACKED.trim_start_matches("sha256:");
    let foreign = format!("../../images/sha256/{hex}/disk.qcow2");
    for (backing, format) in [("other", "raw"), (foreign.as_str(), "qcow2"), ("/etc/passwd", "raw")] {
        let arguments = [
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            format,
            "-b",
            backing,
            disk.to_str().unwrap(),
        ];
        qemu_img(&arguments);
        let operation = daemon.begin("/v1/vms/web/start", &json!({}));
        assert_eq!(operation["error"]["code"], "disk_refused", "{backing}: {operation}");
    }
    assert!(daemon.get("/v1/vms/web/disks").status >= 400);
}

#[test]
fn machines_and_volumes_are_made_from_images_of_other_stores_which_have_to_keep_them() {
    let mut daemon = Daemon::start_seeded(ARCHIVE, |state| seed(&state.with_file_name("archive")));
    let vm = made(&daemon, &json!({"name": "web", "image": DIGEST, "disk_size": "2Mi"}));
    let root = &vm["status"]["root_disk"];
    assert_eq!(
        (&root["method"], &root["store"], &root["reason"]),
        (
            &json!("overlay"),
            &json!("archive"),
            &json!("root_disks is overlay: the sealed image is below it, in store archive")
        )
    );
    let bytes = contents(&daemon, &root_disk(&daemon, &vm));
    assert!(bytes.len() == 2 << 20 && bytes[..DISK_BYTES].iter().all(|byte| *byte == 7));
    let volume = daemon.make(&json!({"name": "data", "source": {"kind": "image", "image": DIGEST}}));
    assert_eq!(volume["image_digest"], DIGEST, "{volume}");
    let own = json!({"name": "own", "format": "raw", "source": {"kind": "image", "image": DIGEST, "copy": true}});
    daemon.make(&own);
    let events = daemon.get("/v1/events").json().to_string();
    assert!(events.contains("volume data was created from an image in store archive"));
    assert_eq!(daemon.post("/v1/vms/web/disks", &json!({"volume": "data"})).status, 200);
    started(&daemon, "web");
    let sealed = pairs([("disk.raw", "raw")]);
    for disk in 0..2 {
        assert_eq!(layers(&daemon, "web", disk)[1..], sealed);
    }
    // A copy elsewhere changes nothing for them.
    let copied = daemon.begin(
        &format!("/v1/images/{DIGEST}/import"),
        &json!({"method": "copy", "stores": ["default"]}),
    );
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    let displaced = |store: &str| daemon.delete(&format!("/v1/images/{DIGEST}/stores/{store}"));
    let refused = displaced("archive").problem(409, "in_use");
    let told = refused["detail"].as_str().unwrap();
    assert!(
        told.contains("used by web") && told.contains("shared by data"),
        "{told}"
    );
    assert_eq!(displaced("default").status, 204);
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
    daemon.crash_and_restart();
    daemon.begin("/v1/vms/web/stop", &json!({"force": true}));
    // Without that store it does not start, and says why.
    let (there, away) = (daemon.path("archive"), daemon.path("away"));
    std::fs::rename(&there, &away).unwrap();
    until(&daemon, "archive", "unavailable");
    let failed = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(failed["error"]["code"], "store_unavailable", "{failed}");
    std::fs::rename(&away, &there).unwrap();
    until(&daemon, "archive", "ready");
    started(&daemon, "web");
    assert_eq!(layers(&daemon, "web", 0)[1..], sealed);
    // Once it stands alone it needs the store no more.
    let done = daemon.begin("/v1/vms/web/flatten", &json!({}));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    assert!(stands_alone(&daemon, &vm));
}

/// Whether nothing is below the disk of a machine that runs.
fn stands_alone(daemon: &Daemon, vm: &Value) -> bool {
    let disk = root_disk(daemon, vm);
    let info = qemu_img(&["info", "-U", "--output=json", disk.to_str().unwrap()]);
    info["backing-filename"].is_null()
}

#[test]
fn each_store_can_have_a_way_of_its_own() {
    let config = format!("{ARCHIVE}root_disks = \"copy\"\n");
    let daemon = Daemon::start_seeded(&config, |state| {
        seed(&state.with_file_name("archive"));
        seed_packed(state);
        let seeded = state.join("images/sha256").join(DIGEST.trim_start_matches("sha256:"));
        std::fs::remove_dir_all(seeded).unwrap();
    });
    for (name, image, method, reason) in [
        (
            "one",
            PACKED,
            "overlay",
            "root_disks is overlay: the sealed image is below it",
        ),
        (
            "two",
            DIGEST,
            "copy",
            "root_disks of image store archive is copy: a full copy was asked for, in store archive",
        ),
    ] {
        let vm = made(&daemon, &json!({"name": name, "image": image}));
        let root = &vm["status"]["root_disk"];
        assert_eq!(
            (&root["method"], &root["reason"]),
            (&json!(method), &json!(reason)),
            "{vm}"
        );
        started(&daemon, name);
    }
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for (store, method) in [("default", "overlay"), ("archive", "copy")] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("karat_store_info{{store=\"{store}\"")));
        assert!(line.unwrap().contains(&format!("clone=\"{method}\"")), "{metrics}");
    }
}
