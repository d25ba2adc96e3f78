//! Copies of images between stores, and imports into several of them.

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::registry::digest;

/// Three stores, of which one takes next to nothing.
const STORES: &str = "reserved_space = 0\n[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n\
    [[images.store]]\nname = \"small\"\npath = \"@DIR@/small\"\nquota = \"4Ki\"\n";

fn disk() -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    disk[1000..70_000].fill(9);
    disk
}

fn image(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/images/{name}")).json()
}

/// A file that is imported, with these options.
fn file(daemon: &Daemon, options: &Value) -> Value {
    std::fs::write(daemon.path("state/files/disk.raw"), disk()).unwrap();
    json!({"method": "file", "path": daemon.path("state/files/disk.raw"), "options": options})
}

#[track_caller]
fn active(daemon: &Daemon, name: &str, stores: &Value) {
    let from = file(daemon, &json!({"stores": stores}));
    let done = daemon.begin("/v1/images", &json!({"name": name, "import": from}));
    assert_eq!(done["phase"], "Succeeded", "{done}");
}

fn copy(daemon: &Daemon, name: &str, how: &Value) -> Value {
    let mut body = json!({"method": "copy"});
    body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
    daemon.begin(&format!("/v1/images/{name}/import"), &body)
}

fn sealed(daemon: &Daemon, store: &str) -> usize {
    let path = daemon.path(store).join("images/sha256");
    std::fs::read_dir(path).unwrap().count()
}

#[test]
fn a_store_that_has_the_image_refuses_a_copy_and_is_left_out_of_all_s17_12() {
    let daemon = Daemon::start_with(STORES);
    active(&daemon, "web", &json!(["default"]));
    let ask = |body: &Value| daemon.post("/v1/images/web/import", body);
    let named = json!({"method": "copy", "stores": ["archive", "default"]});
    ask(&named).problem(409, "store_has_image");
    assert_eq!(sealed(&daemon, "archive"), 0);
    ask(&json!({"method": "copy"})).problem(422, "invalid_spec");
    ask(&json!({"method": "copy", "stores": ["archive", "archive"]})).problem(422, "invalid_spec");
    // Of all the others one may fail, and the record tells which.
    let copied = copy(&daemon, "web", &json!({"all_stores": true}));
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    let web = image(&daemon, "web");
    assert_eq!(
        (&web["stores"], &web["failed_import"], &web["importing_to_stores"]),
        (&json!(["default", "archive"]), &json!(["small"]), &Value::Null),
        "{web}"
    );
    let events = daemon.get("/v1/events").json().to_string();
    assert!(events.contains("is in store archive") && events.contains("did not get into store small"));
    // Where that is the only one, nothing was copied.
    let failed = copy(&daemon, "web", &json!({"all_stores": true}));
    assert_eq!(failed["error"]["code"], "no_space", "{failed}");
    assert_eq!(image(&daemon, "web")["state"], "active");
}

#[test]
fn a_copy_that_must_not_fail_takes_back_its_own_alone_s17_13() {
    let daemon = Daemon::start_with(STORES);
    active(&daemon, "web", &json!(["default"]));
    let failed = copy(
        &daemon,
        "web",
        &json!({"stores": ["archive", "small"], "allow_failure": false}),
    );
    assert_eq!(failed["error"]["code"], "no_space", "{failed}");
    let web = image(&daemon, "web");
    assert_eq!(
        (&web["stores"], &web["failed_import"]),
        (&json!(["default"]), &json!(["small"])),
        "{web}"
    );
    assert_eq!((sealed(&daemon, "state"), sealed(&daemon, "archive")), (1, 0));
    // What another record has brought there stays.
    active(&daemon, "other", &json!(["archive"]));
    let failed = copy(&daemon, "web", &json!({"all_stores": true, "allow_failure": false}));
    assert_eq!(failed["phase"], "Failed", "{failed}");
    assert_eq!(sealed(&daemon, "archive"), 1);
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
}

#[test]
fn copies_of_one_image_at_the_same_time_leave_what_is_there_s17_13() {
    let daemon = Daemon::start_with(STORES);
    active(&daemon, "web", &json!(["default"]));
    let body = json!({"method": "copy", "stores": ["archive"]});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| daemon.post("/v1/images/web/import", &body));
        let asked: Vec<_> = (0..8).map(|_| ask()).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(accepted.len(), 1);
    for refused in answers.iter().filter(|answer| answer.status != 202) {
        let code = refused.json()["code"].as_str().unwrap().to_owned();
        assert!(
            ["store_has_image", "copy_in_progress"].contains(&code.as_str()),
            "{code}"
        );
    }
    assert_eq!(
        daemon.over(accepted[0].header("location").unwrap())["phase"],
        "Succeeded"
    );
    assert_eq!(image(&daemon, "web")["stores"], json!(["default", "archive"]));
    assert_eq!(daemon.begin("/v1/images/web/verify", &json!({}))["phase"], "Succeeded");
}

#[test]
fn it_is_enough_that_one_store_takes_an_import_whichever_that_is_s17_10() {
    let daemon = Daemon::start_with(STORES);
    active(&daemon, "web", &json!(["small", "default", "archive"]));
    let web = image(&daemon, "web");
    assert_eq!(web["digest"], digest(&disk()));
    assert_eq!(
        (&web["stores"], &web["failed_import"]),
        (&json!(["default", "archive"]), &json!(["small"])),
        "{web}"
    );
    assert_eq!(daemon.delete("/v1/images/web").status, 204);
    let strict = file(
        &daemon,
        &json!({"stores": ["default", "small"], "allow_failure": false}),
    );
    let failed = daemon.begin("/v1/images", &json!({"name": "web", "import": strict}));
    assert_eq!(failed["phase"], "Failed", "{failed}");
    wait_for("empty stores", || {
        (sealed(&daemon, "state") + sealed(&daemon, "small") == 0).then_some(())
    });
}

#[test]
fn a_copy_that_is_cut_off_is_told_by_the_next_daemon() {
    let mut daemon = Daemon::start_with(STORES);
    active(&daemon, "web", &json!(["default"]));
    let body = json!({"method": "copy", "stores": ["archive"], "allow_failure": false});
    let answer = daemon.post("/v1/images/web/import", &body);
    assert_eq!(answer.status, 202);
    let operation = answer.header("location").unwrap().to_owned();
    daemon.crash_and_restart();
    let ended = daemon.over(&operation);
    let web = wait_for("an image nobody copies", || {
        Some(image(&daemon, "web")).filter(|web| web["importing_to_stores"].is_null())
    });
    // It may have been done before the end came.
    let stores = if ended["phase"] == "Succeeded" {
        json!(["default", "archive"])
    } else {
        json!(["default"])
    };
    assert_eq!(web["stores"], stores, "{web} {ended}");
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
}
