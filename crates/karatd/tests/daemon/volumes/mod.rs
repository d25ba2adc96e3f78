//! Volumes of a real daemon, looked at with `qemu-img`.

mod attached;
mod crashes;
mod filled;
pub(crate) mod kills;
mod live;
mod offline;
mod refused;
mod sent;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::Daemon;

impl Daemon {
    /// Asks for a volume and waits until it is filled; returns the operation.
    #[track_caller]
    fn fill(&self, wish: &Value) -> Value {
        self.begin("/v1/volumes", wish)
    }

    /// A volume that is there at once, ready.
    #[track_caller]
    pub(crate) fn make(&self, wish: &Value) -> Value {
        let operation = self.fill(wish);
        assert_eq!(operation["phase"], "Succeeded", "{operation}");
        let volume = self.volume(wish["name"].as_str().unwrap());
        assert_eq!(volume["state"], "ready", "{volume}");
        volume
    }

    fn volume(&self, name: &str) -> Value {
        self.get(&format!("/v1/volumes/{name}")).json()
    }

    /// The file of a volume.
    fn file(&self, volume: &Value) -> PathBuf {
        let (id, format) = (volume["id"].as_str().unwrap(), volume["format"].as_str().unwrap());
        self.path("state/volumes").join(format!("{id}.{format}"))
    }

    /// Names of the files of all volumes.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("state/volumes")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn put(&self, name: &str, headers: &str, body: &[u8]) -> crate::harness::Answer {
        self.send("PUT", &format!("/v1/volumes/{name}/data"), headers, body)
    }
}

/// Runs `qemu-img`, which must succeed; what it prints as JSON.
#[track_caller]
pub(crate) fn qemu_img(arguments: &[&str]) -> Value {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// What `qemu-img info` says of the file of a volume, after `qemu-img check` found nothing.
#[track_caller]
fn inspect(daemon: &Daemon, volume: &Value) -> Value {
    let (path, format) = (daemon.file(volume), volume["format"].as_str().unwrap());
    let path = path.to_str().unwrap();
    if format == "qcow2" {
        qemu_img(&["check", "-f", format, path]);
    }
    qemu_img(&["info", "--output=json", "-f", format, path])
}

/// Whether two images have the same contents.
#[track_caller]
fn same(one: (&str, &PathBuf), other: (&str, &PathBuf)) {
    let (a, b) = (one.1.to_str().unwrap(), other.1.to_str().unwrap());
    qemu_img(&["compare", "-f", one.0, "-F", other.0, a, b]);
}

/// A new image beside the daemon's directories, with a recognisable pattern in it.
fn image(daemon: &Daemon, name: &str, format: &str, options: &[&str]) -> PathBuf {
    let path = daemon.path(name);
    let text = path.to_str().unwrap();
    let mut arguments = vec!["create", "-q", "-f", format];
    arguments.extend(options);
    arguments.extend([text, "8M"]);
    qemu_img(&arguments);
    let output = Command::new("qemu-io")
        .args(["-f", format, "-c", "write -q -P 0x5a 1M 2M", text])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    path
}

fn blank(name: &str) -> Value {
    json!({"name": name, "size": "4Mi"})
}
