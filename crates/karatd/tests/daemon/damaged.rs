//! Images whose bytes are not what they were.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::Daemon;

/// Makes a machine from an image that was imported with these properties, and names the sealed file.
fn machine(daemon: &Daemon, properties: &Value) -> PathBuf {
    std::fs::write(daemon.path("state/files/disk.raw"), vec![3; 256 << 10]).unwrap();
    let import = json!({"method": "file", "path": daemon.path("state/files/disk.raw")});
    let wish = json!({"name": "gold", "properties": properties, "import": import});
    assert_eq!(daemon.begin("/v1/images", &wish)["phase"], "Succeeded");
    let mut spec = daemon.spec("web", "");
    spec["image"] = json!("gold");
    let made = daemon.post("/v1/vms", &spec);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let digest = daemon.get("/v1/images/gold").json()["digest"].clone();
    let hex = digest.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let sealed = daemon.path("state/images/sha256").join(hex).join("disk.raw");
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o600)).unwrap();
    sealed
}

fn flip(sealed: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(sealed).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100_000).unwrap();
    file.write_all_at(&[!byte[0]], 100_000).unwrap();
}

fn start(daemon: &Daemon) -> Value {
    daemon.begin("/v1/vms/web/start", &json!({}))
}

fn stop(daemon: &Daemon) {
    assert_eq!(
        daemon.begin("/v1/vms/web/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
}

#[test]
fn an_image_that_asks_for_it_is_compared_before_each_start() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let sealed = machine(&daemon, &json!({"verify_on_boot": "true"}));
    assert_eq!(start(&daemon)["phase"], "Succeeded");
    stop(&daemon);
    flip(&sealed);
    let refused = start(&daemon);
    assert_eq!(refused["error"]["code"], "digest_mismatch", "{refused}");
    assert!(refused.to_string().contains("verify_on_boot"), "{refused}");
    assert_eq!(daemon.vm("web")["status"]["pid"], Value::Null);
    // Nobody makes a machine from it before somebody has looked at it.
    assert_eq!(daemon.get("/v1/images/gold").json()["state"], "deactivated");
    let mut spec = daemon.spec("other", "");
    spec["image"] = json!("gold");
    daemon.post("/v1/vms", &spec).problem(409, "wrong_state");
    flip(&sealed);
    assert_eq!(daemon.post("/v1/images/gold/reactivate", &json!({})).status, 200);
    assert_eq!(start(&daemon)["phase"], "Succeeded");
}

#[test]
fn others_are_not_read_before_each_start() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let sealed = machine(&daemon, &json!({"verify_on_boot": "false"}));
    flip(&sealed);
    assert_eq!(start(&daemon)["phase"], "Succeeded");
    let answer = daemon.post(
        "/v1/images",
        &json!({"name": "bad", "properties": {"verify_on_boot": "sometimes"}}),
    );
    answer.problem(422, "invalid_spec");
}

#[test]
fn what_is_damaged_is_not_called_missing() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let sealed = machine(&daemon, &json!({}));
    std::fs::File::options()
        .write(true)
        .open(&sealed)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let told = start(&daemon);
    assert_eq!(told["error"]["code"], "digest_mismatch", "{told}");
    let told = daemon.begin("/v1/images/gold/push", &json!({"reference": "127.0.0.1:1/demo/gold:1"}));
    assert_eq!(told["error"]["code"], "digest_mismatch", "{told}");
    let mut spec = daemon.spec("other", "");
    spec["image"] = json!("gold");
    daemon.post("/v1/vms", &spec).problem(502, "digest_mismatch");
}
