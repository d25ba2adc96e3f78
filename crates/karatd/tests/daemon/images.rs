//! Images as far as they can be had without a registry; pulling is tested with the image store and in the scenarios.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::json;

use crate::harness::Daemon;
use crate::roots::{contents, root_disk};

/// Bytes of the seeded image's disk.
pub(crate) const DISK_BYTES: usize = 1 << 20;
pub(crate) const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Puts a sealed image into a store that is not open, as a pull would leave it.
pub(crate) fn seed(state: &Path) {
    let dir = state.join("images/sha256").join(DIGEST.trim_start_matches("sha256:"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("disk.raw"), vec![7; DISK_BYTES]).unwrap();
    std::fs::write(dir.join("kernel"), "kernel").unwrap();
    let manifest = json!({"version": 1, "image": {
        "digest": DIGEST, "index_digest": null, "reference": "q.io/demo/x:1",
        "disk": {"source_path": "disk/x.raw", "source_format": "raw", "source_bytes": DISK_BYTES, "virtual_bytes": DISK_BYTES},
        "kernel": {"source_path": "boot/vmlinuz", "size_bytes": 6},
        "initrd": null, "cmdline": null, "imported_at_s": 1_790_000_000,
    }});
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn a_machine_gets_a_private_disk_and_its_image_stays_until_it_is_gone() {
    let daemon = Daemon::start_seeded("reserved_space = 0", seed);
    let image = daemon.get(&format!("/v1/images/{DIGEST}")).json();
    assert_eq!(
        (&image["virtual_size_bytes"], &image["has_kernel"]),
        (&json!(DISK_BYTES), &json!(true))
    );
    let small = daemon.post(
        "/v1/vms",
        &json!({"name": "small", "image": DIGEST, "disk_size": "512Ki"}),
    );
    assert_eq!(small.problem(422, "invalid_spec")["errors"][0]["field"], "disk_size");
    let vm = daemon
        .post("/v1/vms", &json!({"name": "web", "image": DIGEST, "disk_size": "2Mi"}))
        .json();
    assert_eq!(vm["image_digest"], DIGEST);
    assert_eq!(vm["status"]["root_disk"]["method"], "overlay");
    let bytes = contents(&daemon, &root_disk(&daemon, &vm));
    assert_eq!(bytes.len(), 2 << 20);
    assert!(bytes[..DISK_BYTES].iter().all(|byte| *byte == 7) && bytes[DISK_BYTES..].iter().all(|byte| *byte == 0));
    let refused = daemon.delete(&format!("/v1/images/{DIGEST}")).problem(409, "in_use");
    assert!(refused["detail"].as_str().unwrap().contains("used by web"), "{refused}");
    assert_eq!(daemon.begin("/v1/vms/web/start", &json!({}))["phase"], "Succeeded");
    assert_eq!(daemon.delete("/v1/vms/web?force=true").status, 204);
    assert_eq!(daemon.delete(&format!("/v1/images/{DIGEST}")).status, 204);
    daemon.get(&format!("/v1/images/{DIGEST}")).problem(404, "not_found");
    assert_eq!(std::fs::read_dir(daemon.path("state/vms")).unwrap().count(), 0);
}

#[test]
fn no_machine_is_made_when_space_is_short_and_nothing_is_left() {
    let daemon = Daemon::start_seeded("reserved_space = \"900Ti\"", seed);
    let refused = daemon.post("/v1/vms", &json!({"name": "web", "image": DIGEST}));
    assert!(
        refused.problem(507, "no_space")["detail"]
            .as_str()
            .unwrap()
            .contains("reserved_space")
    );
    assert_eq!(std::fs::read_dir(daemon.path("state/vms")).unwrap().count(), 0);
    daemon.get("/v1/vms/web").problem(404, "not_found");
}

#[test]
fn a_pull_from_a_registry_that_is_down_fails_and_says_so() {
    // A port nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let daemon = Daemon::start_with(&format!("insecure_registries = [\"127.0.0.1:{port}\"]"));
    let answer = daemon.post(
        "/v1/images",
        &json!({"reference": format!("127.0.0.1:{port}/demo/x:1")}),
    );
    assert_eq!(answer.status, 202);
    let location = answer.header("location").unwrap().to_owned();
    assert_eq!(
        location,
        format!("/v1/operations/{}", answer.json()["operation"].as_str().unwrap())
    );
    let operation = daemon.over(&location);
    assert_eq!(operation["kind"], "image_pull");
    assert_eq!(operation["error"]["code"], "registry_unavailable", "{operation}");
    daemon.delete(&location).problem(409, "wrong_state");
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
}

#[test]
fn a_pull_from_a_plain_registry_that_is_not_listed_is_refused_and_names_the_setting() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        // What servers of plain HTTP answer to one who speaks TLS.
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 8 << 10]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
        }
    });
    let pull = |config: &str| {
        let daemon = Daemon::start_with(config);
        let answer = daemon.post("/v1/images", &json!({"reference": format!("{registry}/demo/x:1")}));
        daemon.over(answer.header("location").unwrap())
    };
    // This host itself is nobody's registry unless the operator says so.
    let operation = pull("");
    assert_eq!(operation["error"]["code"], "image_refused", "{operation}");
    assert!(operation["error"].to_string().contains("loopback"), "{operation}");
    let operation = pull("[images.registry]\nallowed_networks = [\"127.0.0.0/8\"]");
    assert_eq!(operation["error"]["code"], "insecure_registry", "{operation}");
    let text = operation["error"].to_string();
    assert!(
        text.contains(&registry) && text.contains("insecure_registries"),
        "{operation}"
    );
}

#[test]
fn a_pull_goes_on_with_the_next_daemon_under_the_same_operation() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    let mut daemon = Daemon::start_with(&format!("insecure_registries = [{registry:?}]"));
    let answer = daemon.post("/v1/images", &json!({"reference": format!("{registry}/demo/x:1")}));
    let location = answer.header("location").unwrap().to_owned();
    // It asks, and is not answered before the daemon is gone.
    let asked = listener.accept().unwrap();
    daemon.crash_and_restart();
    drop(asked);
    let asked_again = listener.accept().unwrap();
    assert_eq!(daemon.get(&location).json()["phase"], "Running");
    daemon.terminate();
    daemon.restart();
    drop(asked_again);
    let operation = daemon.get(&location).json();
    assert_eq!(operation["phase"], "Running", "{operation}");
    drop(listener);
    let operation = daemon.over(&location);
    assert_eq!(operation["error"]["code"], "registry_unavailable", "{operation}");
}

#[test]
fn what_failed_pulls_left_goes_with_an_image_and_where_there_is_no_room() {
    let daemon = Daemon::start_seeded("reserved_space = 0", seed);
    let blob = |daemon: &Daemon| daemon.path("state/blobs").join(format!("{}.partial", "0".repeat(64)));
    std::fs::write(blob(&daemon), "a layer").unwrap();
    assert_eq!(daemon.delete(&format!("/v1/images/{DIGEST}")).status, 204);
    assert!(!blob(&daemon).exists());
    let full = Daemon::start_with("reserved_space = \"1000Ti\"");
    std::fs::write(blob(&full), "a layer").unwrap();
    full.post("/v1/volumes", &json!({"name": "data", "size": "1Mi"}))
        .problem(507, "no_space");
    assert!(!blob(&full).exists());
}
