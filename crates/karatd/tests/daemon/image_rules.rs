//! What records of images say, and what that means on a host that has one group of users.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::channel;

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::launcher::says;
use crate::registry::Registry;
use crate::web::CONFIG;

fn names(daemon: &Daemon, query: &str) -> Vec<String> {
    let list = daemon.get(&format!("/v1/images{query}")).json();
    let items = list["items"].as_array().unwrap_or_else(|| panic!("{list}"));
    let mut names: Vec<_> = items
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_hidden_image_is_in_no_ordinary_list_and_still_makes_machines_s17_4() {
    let registry = Registry::start();
    registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    let import = json!({"method": "registry", "reference": registry.reference("1")});
    let wish = json!({"name": "old", "hidden": true, "visibility": "private", "import": import});
    assert_eq!(daemon.begin("/v1/images", &wish)["phase"], "Succeeded");
    assert_eq!(names(&daemon, ""), [""; 0]);
    assert_eq!(names(&daemon, "?hidden=true"), ["old"]);
    let vm = daemon.post("/v1/vms", &json!({"name": "web", "image": "old"}));
    assert_eq!(vm.status, 201, "{vm:?}");
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
    assert_eq!(
        daemon.until("web", "Running")["image_digest"],
        daemon.get("/v1/images/old").json()["digest"]
    );
}

#[test]
fn visibility_and_owner_are_checked_kept_and_filtered_by() {
    let mut daemon = Daemon::start();
    for (name, visibility, owner) in [
        ("a", "private", "ann"),
        ("b", "shared", "bob"),
        ("c", "community", "ann"),
        ("d", "public", "bob"),
    ] {
        let wish = json!({"name": name, "visibility": visibility, "owner": owner});
        assert_eq!(daemon.post("/v1/images", &wish).status, 201);
    }
    assert_eq!(daemon.post("/v1/images", &json!({"name": "e"})).status, 201);
    let refused = daemon.post("/v1/images", &json!({"name": "f", "visibility": "secret"}));
    assert_eq!(refused.problem(422, "invalid_spec")["errors"][0]["field"], "visibility");
    daemon.crash_and_restart();
    // Whoever may use the API owns all, and sees all.
    assert_eq!(names(&daemon, ""), ["a", "b", "c", "d", "e"]);
    assert_eq!(names(&daemon, "?visibility=private"), ["a"]);
    assert_eq!(names(&daemon, "?visibility=shared"), ["b", "e"]);
    assert_eq!(names(&daemon, "?visibility=community&owner=bob"), [""; 0]);
    assert_eq!(names(&daemon, "?owner=ann"), ["a", "c"]);
    daemon.get("/v1/images?visibility=secret").problem(422, "invalid_spec");
    daemon.get("/v1/images?visible=public").problem(400, "invalid_request");
    // As people type it.
    says(
        &daemon,
        &["image", "create", "g", "--visibility", "public", "--owner", "ann"],
    );
    says(&daemon, &["image", "set", "e", "--visibility", "public"]);
    let listed = says(&daemon, &["image", "ls", "--visibility", "public", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let mut listed: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, ["d", "e", "g"]);
}

#[test]
fn a_web_import_has_its_record_before_its_data_s17_6() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
    let (asked, was_asked) = channel();
    let (go, going) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]); // The request, whatever it is.
        asked.send(()).unwrap();
        going.recv().unwrap();
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4096\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[7; 4096]).unwrap();
    });
    let daemon = Daemon::start_with(CONFIG);
    let queued = daemon.post("/v1/images", &json!({"name": "a"})).json();
    assert_eq!(queued["image"]["state"], "queued", "{queued}");
    let begun = daemon.post("/v1/images/a/import", &json!({"method": "web-download", "url": url}));
    assert_eq!(begun.status, 202, "{begun:?}");
    was_asked.recv().unwrap();
    // Not a byte has come.
    let image = daemon.get("/v1/images/a").json();
    assert_eq!(
        (&image["state"], &image["digest"]),
        (&json!("importing"), &Value::Null),
        "{image}"
    );
    assert_eq!(names(&daemon, ""), ["a"]);
    daemon
        .post("/v1/vms", &json!({"name": "web", "image": "a"}))
        .problem(409, "wrong_state");
    go.send(()).unwrap();
    wait_for("the image", || {
        (daemon.get("/v1/images/a").json()["state"] == "active").then_some(())
    });
}

#[test]
fn only_formats_that_are_configured_are_taken_s17_9() {
    let daemon = Daemon::start_with("reserved_space = 0\n[images]\ndisk_formats = [\"qcow2\", \"iso\"]");
    let refused = daemon.post("/v1/images", &json!({"name": "a", "disk_format": "raw"}));
    let refused = refused.problem(422, "invalid_spec");
    let error = &refused["errors"][0];
    assert_eq!(error["field"], "disk_format");
    assert!(error["message"].as_str().unwrap().contains("qcow2, iso"), "{refused}");
    assert_eq!(
        daemon
            .post("/v1/images", &json!({"name": "a", "disk_format": "iso"}))
            .status,
        201
    );
    let patch = "Content-Type: application/merge-patch+json\r\n";
    let changed = daemon.request("PATCH", "/v1/images/a", patch, "{\"disk_format\": \"vmdk\"}");
    changed.problem(422, "invalid_spec");
    // What it is decides, not what it is called.
    assert_eq!(daemon.post("/v1/images", &json!({"name": "b"})).status, 201);
    let sent = daemon.send("PUT", "/v1/images/b/data", "", &[7; 65536]);
    if sent.status == 202 {
        daemon.over(sent.header("location").unwrap());
    }
    let image = daemon.get("/v1/images/b").json();
    assert_eq!(image["failure"]["code"], "format_not_allowed", "{image}");
}

#[test]
fn what_is_shipped_is_tracked_as_soon_as_it_is_installed_gi_05() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/boot-sources.d");
    let shipped = shipped.canonicalize().unwrap();
    // Switched off, since there may be no way to where they come from.
    let daemon = Daemon::start_with(&format!(
        "[boot_sources]\nsystem = false\nsystem_directory = {shipped:?}\ncustom_directory = \"@DIR@/custom.d\"\n"
    ));
    let list = daemon.get("/v1/boot-sources").json();
    assert_eq!(list["problems"], Value::Null, "{list}");
    let items = list["items"].as_array().unwrap();
    let files = std::fs::read_dir(&shipped).unwrap();
    let files = files.filter(|row| {
        row.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|one| one == "toml")
    });
    assert!(items.len() >= files.count(), "{list}");
    for item in items {
        assert_eq!(item["origin"], "system", "{item}");
        assert!(
            item["definition"]["managed"].is_string() && item["definition"]["schedule"].is_string(),
            "{item}"
        );
    }
}

#[test]
fn what_happens_again_is_one_event_with_a_count_dv_03() {
    let mut daemon = Daemon::start();
    let started = |daemon: &Daemon| {
        let all = daemon.get("/v1/events").json();
        let all = all["items"].as_array().unwrap().clone();
        all.into_iter()
            .filter(|event| event["reason"] == "DaemonStarted")
            .collect::<Vec<_>>()
    };
    let first = started(&daemon);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0]["count"], 1);
    assert_eq!(first[0]["first_at"], first[0]["at"]);
    for _ in 0..2 {
        daemon.crash_and_restart();
    }
    let now = started(&daemon);
    assert_eq!(now.len(), 1, "{now:?}");
    assert_eq!((&now[0]["count"], &now[0]["first_at"]), (&json!(3), &first[0]["at"]));
    assert!(
        now[0]["id"].as_u64() > first[0]["id"].as_u64(),
        "who follows events is told"
    );
    let after = daemon.get(&format!("/v1/events?after={}", first[0]["id"])).json();
    assert_eq!(after["items"][0]["count"], 3, "{after}");
    // Something else in between is something else.
    assert_eq!(daemon.post("/v1/images", &json!({"name": "a"})).status, 201);
    let phases = daemon.get("/v1/events").json();
    assert_eq!(
        phases["items"].as_array().unwrap().last().unwrap()["count"],
        1,
        "{phases}"
    );
}
