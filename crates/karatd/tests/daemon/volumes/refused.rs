//! Requests that are wrong, and disks that are full.

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;

use super::blank;
use crate::harness::Daemon;
use crate::images::{DIGEST, seed};

#[test]
fn every_wrong_request_is_a_problem_with_every_field() {
    let daemon = Daemon::start_seeded("reserved_space = 0", seed);
    let fields = |body: serde_json::Value| -> Vec<String> {
        let problem = daemon.post("/v1/volumes", &body).problem(422, "invalid_spec");
        let errors = problem["errors"].as_array().unwrap();
        errors
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(fields(json!({"name": "Data"})), ["name", "size"]);
    assert_eq!(fields(json!({"name": "a", "size": 1000})), ["size"]);
    assert_eq!(fields(json!({"name": "a", "size": "900Ti"})), ["size"]);
    assert_eq!(
        fields(json!({"name": "a", "source": {"kind": "image", "image": "q.io/none:1"}})),
        ["source.image"]
    );
    assert_eq!(
        fields(json!({"name": "a", "size": 512, "source": {"kind": "image", "image": DIGEST}})),
        ["size"]
    );
    assert_eq!(
        fields(json!({"name": "a", "source": {"kind": "volume", "volume": "none"}})),
        ["source.volume"]
    );
    for body in [
        json!({"name": "a", "sise": "1Gi"}),
        json!({"name": "a", "size": "1GB"}),
        json!({"name": "a", "size": "1Gi", "format": "vmdk"}),
        json!({"name": "a", "source": {"kind": "url", "url": "http://x"}}),
        json!({"name": "a", "size": "1Gi", "source": {"kind": "blank", "image": "x"}}),
    ] {
        daemon.post("/v1/volumes", &body).problem(400, "invalid_request");
    }
    daemon.get("/v1/volumes/none").problem(404, "not_found");
    daemon.delete("/v1/volumes/none").problem(404, "not_found");
    daemon
        .post("/v1/volumes/none/check", &json!({}))
        .problem(404, "not_found");
    daemon
        .post("/v1/volumes/none/resize", &json!({"size": "1Gi"}))
        .problem(404, "not_found");
    daemon.make(&blank("data"));
    daemon.post("/v1/volumes", &blank("data")).problem(409, "name_taken");
    daemon
        .post("/v1/volumes/data/check", &json!({"repair": "some"}))
        .problem(400, "invalid_request");
    daemon
        .post("/v1/volumes/data/resize", &json!({"size": "1Gi", "live": true}))
        .problem(400, "invalid_request");
    daemon
        .request("DELETE", "/v1/volumes/data", "If-Match: \"77\"\r\n", "")
        .problem(412, "revision_mismatch");
    assert_eq!(daemon.get("/v1/volumes").json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn space_that_is_kept_free_stays_free() {
    let daemon = Daemon::start_with("reserved_space = \"900Ti\"");
    let refused = daemon.post("/v1/volumes", &blank("data")).problem(507, "no_space");
    assert!(
        refused["detail"].as_str().unwrap().contains("reserved_space"),
        "{refused}"
    );
    let daemon = Daemon::start_with("reserved_space = 0");
    let huge = json!({"name": "huge", "size": "60Ti", "preallocation": "falloc"});
    daemon.post("/v1/volumes", &huge).problem(507, "no_space");
    assert_eq!(daemon.get("/v1/volumes").json(), json!({"items": []}));
}

/// A small file system under the volumes, gone with the test.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH); // Nobody is left to tell.
    }
}

#[test]
fn a_full_disk_fails_the_operation_and_leaves_nothing() {
    let mut small = None;
    let daemon = Daemon::start_seeded("reserved_space = 0", |state| {
        let path = state.join("volumes");
        std::fs::create_dir(&path).unwrap();
        let mounted = rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"size=8m");
        small = mounted.is_ok().then(|| Small(path));
    });
    let Some(_small) = small else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    for (name, wish) in [
        ("raw", json!({"name": "raw", "size": "64Mi", "preallocation": "full"})),
        (
            "reserved",
            json!({"name": "reserved", "size": "64Mi", "preallocation": "falloc"}),
        ),
        (
            "qcow2",
            json!({"name": "qcow2", "size": "64Mi", "format": "qcow2", "preallocation": "full"}),
        ),
    ] {
        let operation = daemon.fill(&wish);
        assert_eq!(operation["error"]["code"], "no_space", "{operation}");
        let volume = daemon.volume(name);
        assert_eq!(
            (&volume["state"], &volume["reason"]),
            (&json!("failed"), &json!("NoSpace")),
            "{volume}"
        );
        assert!(daemon.files().is_empty(), "{:?}", daemon.files());
    }
    daemon.post("/v1/volumes", &json!({"name": "sent", "source": {"kind": "upload"}}));
    let answer = daemon.put("sent", "", &vec![7; 16 << 20]);
    answer.problem(507, "no_space");
    assert!(daemon.volume("sent")["upload"]["received_bytes"].as_u64().unwrap() > 4 << 20);
    assert_eq!(daemon.delete("/v1/volumes/sent").status, 204);
    // What was sent completely is not sent again.
    let bytes: Vec<u8> = (0..(5u32 << 20) - 100)
        .map(|at| (at >> 8).to_le_bytes()[0] | 1)
        .collect();
    let path = daemon.path("sent.raw");
    std::fs::write(&path, &bytes).unwrap();
    let source = json!({"kind": "upload", "sha256": super::sent::sha256(&path)});
    daemon.post(
        "/v1/volumes",
        &json!({"name": "sent", "format": "qcow2", "source": source}),
    );
    let answer = daemon.put("sent", "", &bytes);
    let operation = daemon.over(answer.header("location").unwrap());
    assert_eq!(operation["error"]["code"], "no_space", "{operation}");
    let volume = daemon.volume("sent");
    assert_eq!(
        (&volume["reason"], &volume["upload"]["received_bytes"]),
        (&json!("AwaitingUpload"), &json!(bytes.len())),
        "{volume}"
    );
    rustix::mount::mount_remount(daemon.path("state/volumes"), MountFlags::empty(), "size=32m").unwrap();
    let answer = daemon.put("sent", &format!("Content-Range: bytes */{}\r\n", bytes.len()), b"");
    let operation = daemon.over(answer.header("location").unwrap());
    assert_eq!(operation["phase"], "Succeeded", "{operation}");
    super::inspect(&daemon, &daemon.volume("sent"));
    assert_eq!(daemon.files().len(), 1, "{:?}", daemon.files());
    // With room again, all is well.
    daemon.make(&json!({"name": "fits", "size": "4Mi", "preallocation": "full"}));
}

#[test]
fn a_small_upload_does_not_become_a_disk_beyond_all_bounds() {
    let daemon = Daemon::start_with("reserved_space = 0\nimage_max = \"16Mi\"");
    let path = daemon.path("huge.qcow2");
    let text = path.to_str().unwrap();
    super::qemu_img(&["create", "-q", "-f", "qcow2", text, "17M"]);
    daemon.post("/v1/volumes", &json!({"name": "huge", "source": {"kind": "upload"}}));
    let answer = daemon.put("huge", "", &std::fs::read(&path).unwrap());
    let operation = daemon.over(answer.header("location").unwrap());
    assert_eq!(operation["error"]["code"], "disk_refused", "{operation}");
    let told = operation["error"]["detail"].as_str().unwrap();
    assert!(told.contains("17825792") && told.contains("image_max"), "{told}");
    assert!(daemon.files().is_empty(), "{:?}", daemon.files());
}
