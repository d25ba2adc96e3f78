//! Volumes that are made: blank, from images, from others; grown, checked, removed.

use serde_json::{Value, json};

use super::{blank, inspect, qemu_img, same};
use crate::harness::Daemon;
use crate::images::{DIGEST, DISK_BYTES, seed};

#[test]
fn a_blank_volume_is_what_was_asked_for() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let raw = daemon.make(&blank("raw"));
    assert_eq!((&raw["format"], &raw["size_bytes"]), (&json!("raw"), &json!(4 << 20)));
    assert_eq!(raw["usage_bytes"], 0);
    assert_eq!(inspect(&daemon, &raw)["virtual-size"], 4 << 20);
    for (name, form) in [
        ("plain", json!({})),
        ("small", json!({"cluster_size": "4Ki"})),
        ("tables", json!({"preallocation": "metadata"})),
        ("reserved", json!({"preallocation": "falloc"})),
        ("written", json!({"preallocation": "full"})),
    ] {
        let mut wish = json!({"name": name, "size": "4Mi", "format": "qcow2"});
        wish.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        let volume = daemon.make(&wish);
        let info = inspect(&daemon, &volume);
        assert_eq!(info["virtual-size"], 4 << 20, "{info}");
        let cluster = if name == "small" { 4 << 10 } else { 64 << 10 };
        assert_eq!(info["cluster-size"], cluster, "{info}");
        let usage = volume["usage_bytes"].as_u64().unwrap();
        assert_eq!(
            usage >= 4 << 20,
            ["reserved", "written"].contains(&name),
            "{name}: {usage}"
        );
    }
    for (name, preallocation) in [("raw-reserved", "falloc"), ("raw-written", "full")] {
        let volume = daemon.make(&json!({"name": name, "size": "4Mi", "preallocation": preallocation}));
        assert_eq!(volume["usage_bytes"], 4 << 20, "{volume}");
    }
    let list = daemon.get("/v1/volumes").json();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "plain",
            "raw",
            "raw-reserved",
            "raw-written",
            "reserved",
            "small",
            "tables",
            "written"
        ]
    );
    assert_eq!(daemon.files().len(), 8);
    for name in names {
        assert_eq!(daemon.delete(&format!("/v1/volumes/{name}")).status, 204);
    }
    assert_eq!(daemon.get("/v1/volumes").json(), json!({"items": []}));
    assert!(daemon.files().is_empty());
}

#[test]
fn conditions_and_events_tell_what_became_of_a_volume() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let volume = daemon.make(&blank("data"));
    let condition = |kind: &str| {
        let found = volume["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["type"] == kind);
        found.cloned().unwrap()
    };
    assert_eq!(condition("Bound")["status"], true);
    assert_eq!(condition("Ready")["status"], true);
    assert_eq!(
        (&condition("Running")["status"], &condition("Running")["reason"]),
        (&json!(false), &json!("Completed"))
    );
    daemon.delete("/v1/volumes/data");
    let events = daemon.get("/v1/events").json();
    let reasons: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["subject"]["collection"] == "volumes")
        .map(|event| (event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("Created", "volume data was created"),
            ("PhaseChanged", "volume data is ready"),
            ("Deleted", "volume data was deleted")
        ]
    );
}

#[test]
fn a_clone_shares_blocks_with_its_image_which_stays_until_it_is_gone() {
    let daemon = Daemon::start_seeded("reserved_space = 0", seed);
    let image = daemon
        .path("state/images/sha256")
        .join(DIGEST.trim_start_matches("sha256:"))
        .join("disk.raw");
    let clone = daemon.make(&json!({"name": "clone", "source": {"kind": "image", "image": DIGEST}}));
    assert_eq!(
        (&clone["format"], &clone["image_digest"]),
        (&json!("qcow2"), &json!(DIGEST))
    );
    let info = inspect(&daemon, &clone);
    assert_eq!(info["backing-filename-format"], "raw", "{info}");
    assert!(
        info["backing-filename"].as_str().unwrap().starts_with("../images/"),
        "{info}"
    );
    same(("qcow2", &daemon.file(&clone)), ("raw", &image));
    let larger = json!({"name": "larger", "size": "2Mi", "source": {"kind": "image", "image": DIGEST, "copy": true}, "format": "raw"});
    let larger = daemon.make(&larger);
    assert_eq!(larger["image_digest"], Value::Null);
    let bytes = std::fs::read(daemon.file(&larger)).unwrap();
    assert_eq!(bytes.len(), 2 << 20);
    assert!(bytes[..DISK_BYTES].iter().all(|byte| *byte == 7) && bytes[DISK_BYTES..].iter().all(|byte| *byte == 0));
    let refused = daemon.delete(&format!("/v1/images/{DIGEST}")).problem(409, "in_use");
    assert!(
        refused["detail"].as_str().unwrap().contains("shared by clone"),
        "{refused}"
    );
    assert_eq!(
        daemon.get(&format!("/v1/images/{DIGEST}")).json()["used_by_volumes"],
        json!(["clone"])
    );
    // A converted copy stands on its own.
    let form = json!({"name": "own", "format": "qcow2", "compressed": true});
    let operation = daemon.begin("/v1/volumes/clone/convert", &form);
    assert_eq!(
        (&operation["phase"], &operation["result"]),
        (&json!("Succeeded"), &json!("own"))
    );
    let own = daemon.volume("own");
    assert_eq!(inspect(&daemon, &own)["backing-filename"], Value::Null);
    same(("qcow2", &daemon.file(&own)), ("raw", &image));
    assert_eq!(daemon.delete("/v1/volumes/clone").status, 204);
    assert_eq!(daemon.delete(&format!("/v1/images/{DIGEST}")).status, 204);
    qemu_img(&["check", daemon.file(&own).to_str().unwrap()]);
}

#[test]
fn a_copy_of_a_volume_is_the_same_in_any_form() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let source = super::image(&daemon, "source.qcow2", "qcow2", &[]);
    let bytes = std::fs::read(&source).unwrap();
    daemon.post("/v1/volumes", &json!({"name": "first", "source": {"kind": "upload"}}));
    let sent = daemon.put("first", "", &bytes);
    daemon.over(sent.header("location").unwrap());
    for (name, form) in [
        ("same", json!({})),
        ("raw", json!({"format": "raw"})),
        (
            "packed",
            json!({"format": "qcow2", "cluster_size": "16Ki", "compressed": true}),
        ),
        ("large", json!({"format": "qcow2", "size": "9Mi"})),
        ("reserved", json!({"format": "raw", "preallocation": "falloc"})),
    ] {
        let mut wish = json!({"name": name, "source": {"kind": "volume", "volume": "first"}});
        wish.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        let copy = daemon.make(&wish);
        inspect(&daemon, &copy);
        same(
            (copy["format"].as_str().unwrap(), &daemon.file(&copy)),
            ("qcow2", &source),
        );
        let usage = copy["usage_bytes"].as_u64().unwrap();
        assert_eq!(usage >= 8 << 20, name == "reserved", "{name}: {usage}");
    }
    let small = daemon.post(
        "/v1/volumes",
        &json!({"name": "s", "size": "7Mi", "source": {"kind": "volume", "volume": "first"}}),
    );
    assert_eq!(small.problem(422, "invalid_spec")["errors"][0]["field"], "size");
}

#[test]
fn volumes_grow_and_never_shrink() {
    let daemon = Daemon::start_with("reserved_space = 0");
    for format in ["raw", "qcow2"] {
        let made = daemon.make(&json!({"name": format, "size": "4Mi", "format": format}));
        let path = format!("/v1/volumes/{format}");
        let operation = daemon.begin(&format!("{path}/resize"), &json!({"size": "6Mi"}));
        assert_eq!(operation["phase"], "Succeeded", "{operation}");
        let grown = daemon.volume(format);
        assert_eq!(grown["size_bytes"], 6 << 20);
        assert_eq!(inspect(&daemon, &grown)["virtual-size"], 6 << 20);
        let shrunk = daemon.post(&format!("{path}/resize"), &json!({"size": "5Mi"}));
        assert_eq!(shrunk.problem(422, "invalid_spec")["errors"][0]["field"], "size");
        let tag = format!(
            "If-Match: \"{}\"\r\nContent-Type: application/merge-patch+json\r\n",
            made["revision"]
        );
        daemon
            .request("PATCH", &path, &tag, "{\"size\": \"8Mi\"}")
            .problem(412, "revision_mismatch");
        let tag = format!(
            "If-Match: \"{}\"\r\nContent-Type: application/merge-patch+json\r\n",
            grown["revision"]
        );
        let patched = daemon.request("PATCH", &path, &tag, "{\"size\": \"8Mi\"}");
        assert_eq!(patched.status, 202, "{patched:?}");
        assert_eq!(daemon.over(patched.header("location").unwrap())["phase"], "Succeeded");
        assert_eq!(inspect(&daemon, &daemon.volume(format))["virtual-size"], 8 << 20);
    }
}

#[test]
fn a_check_finds_leaks_and_gives_them_back() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let volume = daemon.make(&json!({"name": "data", "size": "4Mi", "format": "qcow2"}));
    let sound = daemon.begin("/v1/volumes/data/check", &json!({}));
    assert_eq!(sound["result"], "0 errors, 0 leaked clusters", "{sound}");
    let path = daemon.file(&volume);
    leak(&path);
    let found = daemon.begin("/v1/volumes/data/check", &json!({}));
    assert_eq!(found["result"], "0 errors, 1 leaked clusters", "{found}");
    assert_eq!(daemon.volume("data")["last_check"]["leaks"], 1);
    let repaired = daemon.begin("/v1/volumes/data/check", &json!({"repair": "leaks"}));
    assert_eq!(repaired["phase"], "Succeeded", "{repaired}");
    let check = &daemon.volume("data")["last_check"];
    assert_eq!(
        (&check["leaks"], &check["leaks_repaired"], &check["repair"]),
        (&json!(0), &json!(1), &json!("leaks"))
    );
    inspect(&daemon, &daemon.volume("data"));
}

/// Counts one cluster behind the end of the image as taken.
fn leak(path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let long = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // The refcount table is at the offset in bytes 48 to 55; its first entry leads to a block of 16-bit counts.
    let block = long(long(48));
    let end = file.metadata().unwrap().len().next_multiple_of(64 << 10);
    file.set_len(end + (64 << 10)).unwrap();
    file.write_all_at(&1u16.to_be_bytes(), block + 2 * (end >> 16)).unwrap();
}

#[test]
fn the_size_is_what_the_file_has_where_the_record_is_behind() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.make(&json!({"name": "data", "size": "8Mi", "format": "qcow2"}));
    // As after it grew under a machine that could not tell any more.
    let database = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    let update = "UPDATE volumes SET record = json_set(record, '$.size_bytes', 4194304)";
    assert_eq!(database.execute(update, []).unwrap(), 1);
    let copied = daemon.begin("/v1/volumes/data/convert", &json!({"name": "copy", "format": "raw"}));
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    assert_eq!(daemon.volume("copy")["size_bytes"], 8 << 20);
    for (size, has) in [("6Mi", 8 << 20), ("9Mi", 9 << 20)] {
        let resized = daemon.begin("/v1/volumes/data/resize", &json!({"size": size}));
        assert_eq!(resized["phase"], "Succeeded", "{resized}");
        assert_eq!(daemon.volume("data")["size_bytes"], has);
    }
}
