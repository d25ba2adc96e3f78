//! Boot sources of Debian's `docker-registry`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::registry::{MANIFEST, container, digest};

/// A running `docker-registry`; ends with the test.
pub(crate) struct Distribution {
    child: Child,
    /// Host and port.
    pub(crate) host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait(); // As above.
    }
}

impl Distribution {
    /// Nothing where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // It was free a moment ago.
        let host = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            dir.path().join("data").display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            skipped();
            return None;
        };
        wait_for("docker-registry", || TcpStream::connect(&host).ok());
        Some(Self { child, host, _dir: dir })
    }

    /// Pushes a container disk, all bytes `fill`, under a tag; returns the digest of its manifest.
    fn push(&self, tag: &str, fill: u8) -> String {
        let disk = ("disk/x.raw", vec![fill; 64 << 10]);
        let image = container(&[disk, ("boot/vmlinuz", b"kernel".to_vec())]);
        for blob in &image.blobs {
            let begun = self.send("POST", "/v2/demo/blobs/uploads/", "", b"");
            let location = begun.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
            });
            let location = location.unwrap_or_else(|| panic!("{begun}"));
            let path = location
                .strip_prefix(&format!("http://{}", self.host))
                .unwrap_or(&location);
            let done = self.send("PUT", &format!("{path}&digest={}", digest(blob)), "", blob);
            assert!(done.starts_with("HTTP/1.1 201"), "{done}");
        }
        let kind = format!("Content-Type: {MANIFEST}\r\n");
        let done = self.send(
            "PUT",
            &format!("/v2/demo/manifests/{tag}"),
            &kind,
            image.manifest.as_bytes(),
        );
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
        digest(image.manifest.as_bytes())
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped() {
    eprintln!("skipped: docker-registry is not installed");
}

#[test]
fn what_is_pushed_is_imported_the_alias_moves_and_what_is_old_and_unused_goes() {
    let Some(registry) = Distribution::start() else { return };
    let host = &registry.host;
    let daemon = Daemon::start_with(&format!(
        "reserved_space = 0\ninsecure_registries = [{host:?}]\n[boot_sources]\nsystem_directory = \"@DIR@/system.d\"\n\
         custom_directory = \"@DIR@/custom.d\"\n"
    ));
    registry.push("other", 99);
    let first = registry.push("12", 1);
    let wish = json!({
        "source": {"registry": format!("docker://{host}/demo:12")}, "schedule": "@daily", "managed": "debian12",
        "imports_to_keep": 2,
    });
    let headers = "Content-Type: application/json\r\n";
    let answer = daemon.request("PUT", "/v1/boot-sources/debian-12", headers, &wish.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    let sync = || {
        let done = daemon.begin("/v1/boot-sources/debian-12/sync", &json!({}));
        assert_eq!(done["phase"], "Succeeded", "{done}");
    };
    let current = || daemon.get("/v1/images/debian12").json();
    let kept = |wanted: &[&String]| {
        wait_for("old imports to go", || {
            let source = daemon.get("/v1/boot-sources/debian-12").json();
            let imports = source["imports"].as_array().unwrap().clone();
            let digests: Vec<Value> = imports.iter().map(|import| import["digest"].clone()).collect();
            (digests == wanted.iter().map(|digest| json!(digest)).collect::<Vec<_>>()).then_some(())
        });
    };
    sync();
    assert_eq!(current()["digest"], daemon.content(&first));
    // A machine keeps the first.
    let vm = json!({"name": "old", "image": "debian12"});
    assert_eq!(daemon.post("/v1/vms", &vm).status, 201);

    let second = registry.push("12", 2);
    sync();
    assert_eq!(current()["digest"], daemon.content(&second));
    assert_eq!(current()["aliases"], json!(["debian12"]));
    kept(&[&second, &first]);

    let third = registry.push("12", 3);
    sync();
    assert_eq!(current()["digest"], daemon.content(&third));
    // Two are kept, and one of them is in use: the second goes.
    kept(&[&third, &first]);
    daemon.get(&format!("/v1/images/{second}")).problem(404, "not_found");
    assert_eq!(daemon.vm("old")["image_digest"], daemon.content(&first));

    // A tag that moves back leads the alias back, and nothing is fetched or stored twice.
    registry.push("12", 1);
    sync();
    assert_eq!(current()["digest"], daemon.content(&first));
    let images = daemon.get("/v1/images").json();
    assert_eq!(images["items"].as_array().unwrap().len(), 2, "{images}");
}

#[test]
fn a_hundred_sources_that_have_nothing_new_are_polled_at_once() {
    const SOURCES: usize = 100;
    let Some(registry) = Distribution::start() else { return };
    let host = &registry.host;
    let daemon = Daemon::start_with(&format!(
        "reserved_space = 0\ninsecure_registries = [{host:?}]\n[boot_sources]\nsystem_directory = \"@DIR@/system.d\"\n\
         custom_directory = \"@DIR@/custom.d\"\n"
    ));
    // All before any is fetched: the registry takes no blob anew while it gives it away.
    for number in 0..SOURCES {
        registry.push(&format!("t{number}"), 1);
    }
    for number in 0..SOURCES {
        let wish = json!({
            "source": {"registry": format!("docker://{host}/demo:t{number}")}, "schedule": "@yearly",
            "managed": format!("alias-{number}"),
        });
        let path = format!("/v1/boot-sources/source-{number}");
        let answer = daemon.request("PUT", &path, "Content-Type: application/json\r\n", &wish.to_string());
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let imports = || {
        let list = daemon.get("/v1/boot-sources").json();
        let items = list["items"].as_array().unwrap().clone();
        let imports = |one: &Value| one["imports"].as_array().unwrap().clone();
        items.iter().map(imports).collect::<Vec<_>>()
    };
    wait_for("all imports", || {
        imports().iter().all(|one| one.len() == 1).then_some(())
    });
    let before = imports();
    for _ in 0..4 {
        let begun = std::time::Instant::now();
        let answer = daemon.post("/v1/boot-sources/-/sync", &json!({}));
        assert_eq!(answer.status, 202, "{answer:?}");
        let operations = answer.json()["items"].as_array().unwrap().clone();
        assert_eq!(operations.len(), SOURCES);
        wait_for("all polls", || {
            let all = daemon.get("/v1/operations").json();
            let all = all["items"].as_array().unwrap();
            let is_over =
                |one: &&Value| one["phase"] == "Succeeded" && operations.iter().any(|op| op["id"] == one["id"]);
            (all.iter().filter(is_over).count() == SOURCES).then_some(())
        });
        told(begun.elapsed());
    }
    assert_eq!(imports(), before, "nothing was imported again");
}

#[expect(clippy::print_stderr, reason = "a figure is told and not judged")]
fn told(took: std::time::Duration) {
    eprintln!("100 polls took {} ms", took.as_millis());
}
