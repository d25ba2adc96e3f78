//! Images go out to a registry, Debian's `docker-registry`, and come back.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Daemon, wait_for};

/// A registry of its own, killed when the test ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(dir: &Path, host: &str) -> Server {
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        dir.join("registry").display()
    );
    std::fs::write(dir.join("config.yml"), config).unwrap();
    let child = Command::new("/usr/bin/docker-registry")
        .args(["serve", "config.yml"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(child);
    wait_for("docker-registry", || TcpStream::connect(host).ok());
    server
}

#[test]
fn an_image_goes_out_and_comes_back() {
    if !Path::new("/usr/bin/docker-registry").exists() {
        eprintln!("skipped: docker-registry is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let daemon = Daemon::start_with(&format!("insecure_registries = [\"{host}\"]"));
    let mut disk = vec![0; 1 << 20];
    disk[5000..90_000].fill(7);
    assert_eq!(daemon.post("/v1/images", &json!({"name": "golden"})).status, 201);
    let nothing = daemon.post(
        "/v1/images/golden/push",
        &json!({"reference": format!("{host}/demo:1")}),
    );
    nothing.problem(409, "wrong_state");
    let sent = daemon.send("PUT", "/v1/images/golden/data", "", &disk);
    assert_eq!(daemon.over(sent.header("location").unwrap())["phase"], "Succeeded");

    let push = |reference: &str| daemon.begin("/v1/images/golden/push", &json!({ "reference": reference }));
    let down = push(&format!("{host}/demo:1"));
    assert_eq!(down["error"]["code"], "registry_unavailable", "{down}");
    let _server = serve(dir.path(), &host);
    let done = push(&format!("{host}/demo:1"));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    let manifest = done["result"].as_str().unwrap();

    let pulled = daemon.begin("/v1/images", &json!({"reference": format!("{host}/demo@{manifest}")}));
    assert_eq!(pulled["phase"], "Succeeded", "{pulled}");
    let image = daemon
        .get(&format!("/v1/images/{}", pulled["result"].as_str().unwrap()))
        .json();
    assert_eq!(image["virtual_size_bytes"], 1 << 20);
    assert_eq!(image["source_format"], "qcow2");

    let refused = |image: &str, reference: &str| {
        daemon.post(&format!("/v1/images/{image}/push"), &json!({ "reference": reference }))
    };
    refused("golden", &format!("{host}/demo@{manifest}")).problem(422, "invalid_spec");
    refused("golden", "no reference").problem(422, "invalid_spec");
    refused("other", &format!("{host}/demo:1")).problem(404, "not_found");
}
