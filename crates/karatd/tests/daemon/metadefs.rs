//! Metadata definitions: read by everybody, written by whom the policy lets.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::launcher::{fails, says};

const CONFIG: &str = "[metadefs]\nsystem_directory = \"@DIR@/system.d\"\ncustom_directory = \"@DIR@/custom.d\"\n";
/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65534;

/// A daemon with these files in its two directories.
fn start(more: &str, files: &[(&str, &str)]) -> Daemon {
    Daemon::start_seeded(&format!("{more}{CONFIG}"), |state| {
        for directory in ["system.d", "custom.d"] {
            std::fs::create_dir(state.parent().unwrap().join(directory)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(state.parent().unwrap().join(name), text).unwrap();
        }
    })
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|one| one["namespace"].as_str().unwrap()).collect()
}

#[test]
fn what_is_shipped_is_listed_and_files_that_are_wrong_stop_nobody() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/metadefs.d");
    let shipped = shipped.canonicalize().unwrap();
    let daemon = Daemon::start_seeded(
        &format!("[metadefs]\nsystem_directory = {shipped:?}\ncustom_directory = \"@DIR@/custom.d\"\n"),
        |state| {
            let custom = state.parent().unwrap().join("custom.d");
            std::fs::create_dir(&custom).unwrap();
            std::fs::write(custom.join("bad.toml"), "namespace = \"a\"\nnothing = 1\n").unwrap();
            let own = "namespace = \"own\"\ndisplay_name = \"Ours\"\n[[resource_types]]\nname = \"volume\"\n\
                [[properties]]\nname = \"tier\"\ntype = \"string\"\nenum = [\"gold\", \"tin\"]\n";
            std::fs::write(custom.join("own.toml"), own).unwrap();
        },
    );
    let list = daemon.get("/v1/metadefs").json();
    for name in ["karat-devices", "own"] {
        assert!(names(&list).contains(&name), "{list}");
    }
    assert!(names(&list).len() > 5, "{list}");
    let problem = list["problems"][0].as_str().unwrap();
    assert!(problem.contains("bad.toml:2"), "{problem}");
    let devices = daemon.get("/v1/metadefs/karat-devices").json();
    let bus = devices["properties"].as_array().unwrap();
    let bus = bus.iter().find(|one| one["name"] == "hw_disk_bus").unwrap();
    assert_eq!(bus["enum"], json!(["scsi", "virtio", "ide", "usb"]));
    assert_eq!(
        (&bus["default"], &devices["protected"]),
        (&json!("virtio"), &json!(true))
    );
    assert_eq!(names(&daemon.get("/v1/metadefs?resource_type=volume").json()), ["own"]);
    daemon.get("/v1/metadefs/nothing").problem(404, "not_found");
    daemon.get("/v1/metadefs?kind=x").problem(400, "invalid_request");
    // As people look at it.
    let listed = says(&daemon, &["metadef", "ls", "--for", "volume"]);
    assert!(listed.contains("own") && !listed.contains("karat-devices"), "{listed}");
    let shown = says(&daemon, &["metadef", "show", "karat-devices"]);
    assert!(
        shown.contains("hw_disk_bus") && shown.contains("scsi virtio ide usb"),
        "{shown}"
    );
    assert!(fails(&daemon, &["metadef", "show", "nothing"]).contains("no namespace"));
}

#[test]
fn administrators_write_and_files_stay_as_they_are() {
    let file = "namespace = \"shipped\"\n[[resource_types]]\nname = \"image\"\n";
    let mut daemon = start("", &[("system.d/a.toml", file)]);
    let put = |daemon: &Daemon, name: &str, space: &Value| {
        let headers = "Content-Type: application/json\r\n";
        daemon.request("PUT", &format!("/v1/metadefs/{name}"), headers, &space.to_string())
    };
    let own = json!({
        "namespace": "own", "protected": true, "tags": [{"name": "fast"}],
        "properties": [{"name": "tier", "type": "integer", "minimum": 1, "maximum": 3, "default": "1"}],
    });
    assert_eq!(put(&daemon, "own", &own).status, 201);
    let bad = json!({"namespace": "bad", "properties": [{"name": "a b", "type": "string"}, {"name": "n", "type": "integer", "default": "x"}]});
    let refused = put(&daemon, "bad", &bad).problem(422, "invalid_spec");
    let fields: Vec<_> = refused["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["field"])
        .collect();
    assert_eq!(fields, ["properties[0].name", "properties[1].default"], "{refused}");
    put(&daemon, "other", &own).problem(422, "invalid_spec");
    put(&daemon, "bad", &json!({"namespace": "bad", "x": 1})).problem(400, "invalid_request");
    put(&daemon, "shipped", &json!({"namespace": "shipped"})).problem(409, "wrong_state");
    daemon.delete("/v1/metadefs/shipped").problem(409, "wrong_state");
    // What was written is there after a crash.
    daemon.crash_and_restart();
    let list = daemon.get("/v1/metadefs").json();
    assert_eq!(names(&list), ["own", "shipped"]);
    assert_eq!(list["items"][0]["properties"][0]["maximum"], 3);
    // Its protection is taken away first.
    daemon.delete("/v1/metadefs/own").problem(409, "wrong_state");
    let mut open = own;
    open["protected"] = json!(false);
    assert_eq!(put(&daemon, "own", &open).status, 200);
    assert_eq!(daemon.delete("/v1/metadefs/own").status, 204);
    daemon.delete("/v1/metadefs/own").problem(404, "not_found");
    // A file that comes to be called so later has the name.
    assert_eq!(put(&daemon, "late", &json!({"namespace": "late"})).status, 201);
    daemon.terminate();
    std::fs::write(
        daemon.path("custom.d/late.toml"),
        "namespace = \"late\"\ndisplay_name = \"File\"\n",
    )
    .unwrap();
    daemon.restart();
    let list = daemon.get("/v1/metadefs").json();
    assert_eq!(list["items"][0]["display_name"], "File");
    assert!(list["problems"][0].as_str().unwrap().contains("late"), "{list}");
}

/// What a user gets who is neither root nor the daemon; status and body.
fn as_nobody(daemon: &Daemon, words: &[&str], path: &str) -> (String, String) {
    let output = Command::new("curl")
        .args(["--silent", "--write-out", "\n%{http_code}", "--unix-socket"])
        .arg(daemon.path("karat.sock"))
        .args(words)
        .arg(format!("http://karat{path}"))
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn others_read_and_write_only_under_the_open_policy_s17_21() {
    if !rustix::process::geteuid().is_root() || Command::new("curl").arg("--version").output().is_err() {
        return skipped();
    }
    let mut daemon = start(
        "socket_group = \"nogroup\"\n",
        &[("system.d/a.toml", "namespace = \"shipped\"\n")],
    );
    daemon.reconfigure("custom_directory", "policy = \"lock_down\"\ncustom_directory");
    std::fs::set_permissions(daemon.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let restart = |daemon: &mut Daemon| {
        daemon.terminate();
        daemon.restart();
    };
    restart(&mut daemon);
    let space = r#"{"namespace": "theirs"}"#;
    let put = ["-X", "PUT", "-H", "Content-Type: application/json", "-d", space];
    let (status, body) = as_nobody(&daemon, &[], "/v1/metadefs/shipped");
    assert_eq!(status, "200", "{body}");
    for words in [&put[..], &["-X", "DELETE"]] {
        let (status, body) = as_nobody(&daemon, words, "/v1/metadefs/theirs");
        assert_eq!(status, "403", "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["code"], "forbidden", "{body}");
    }
    daemon.reconfigure("\"lock_down\"", "\"open\"");
    restart(&mut daemon);
    let (status, body) = as_nobody(&daemon, &put, "/v1/metadefs/theirs");
    assert_eq!(status, "201", "{body}");
    assert_eq!(names(&daemon.get("/v1/metadefs").json()), ["shipped", "theirs"]);
    // What files say is nobody's to change.
    let (status, body) = as_nobody(&daemon, &["-X", "DELETE"], "/v1/metadefs/shipped");
    assert_eq!(status, "409", "{body}");
    assert_eq!(as_nobody(&daemon, &["-X", "DELETE"], "/v1/metadefs/theirs").0, "204");
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped() {
    eprintln!("skipped: only root can ask as somebody else, and with curl");
}
