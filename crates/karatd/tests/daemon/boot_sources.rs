//! Boot sources: tracked, imported, kept, removed.

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::registry::Registry;

pub(crate) const DIRECTORIES: &str =
    "[boot_sources]\nsystem_directory = \"@DIR@/system.d\"\ncustom_directory = \"@DIR@/custom.d\"\n";
const PATCH: &str = "Content-Type: application/merge-patch+json\r\n";

pub(crate) fn start(registry: &Registry) -> Daemon {
    Daemon::start_with(&format!("{}{DIRECTORIES}", registry.config()))
}

pub(crate) fn wish(registry: &Registry) -> Value {
    json!({
        "source": {"registry": format!("docker://{}", registry.reference("12"))},
        "schedule": "0 */12 * * *", "managed": "debian12",
    })
}

pub(crate) fn put(daemon: &Daemon, name: &str, wish: &Value) -> crate::harness::Answer {
    let path = format!("/v1/boot-sources/{name}");
    daemon.request("PUT", &path, "Content-Type: application/json\r\n", &wish.to_string())
}

pub(crate) fn edit(daemon: &Daemon, name: &str, change: &Value) -> Value {
    let path = format!("/v1/boot-sources/{name}");
    let answer = daemon.request("PATCH", &path, PATCH, &change.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub(crate) fn show(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/boot-sources/{name}")).json()
}

pub(crate) fn condition<'a>(source: &'a Value, kind: &str) -> &'a Value {
    let all = source["conditions"].as_array().unwrap();
    all.iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

/// Waits until a source has so many imports and is up to date.
pub(crate) fn until_current(daemon: &Daemon, name: &str, imports: usize) -> Value {
    wait_for("the source to be up to date", || {
        let source = show(daemon, name);
        let current = condition(&source, "UpToDate")["status"] == "True";
        (current && source["imports"].as_array().unwrap().len() == imports).then_some(source)
    })
}

pub(crate) fn sync(daemon: &Daemon, name: &str) -> Value {
    daemon.begin(&format!("/v1/boot-sources/{name}/sync"), &json!({}))
}

#[test]
fn a_new_source_is_imported_at_once_and_its_alias_makes_machines() {
    let registry = Registry::start();
    let digest = registry.push("12", 7);
    let mut daemon = start(&registry);
    assert_eq!(put(&daemon, "debian-12", &wish(&registry)).status, 201);
    let source = until_current(&daemon, "debian-12", 1);
    assert_eq!(source["imports"][0]["digest"], digest);
    assert_eq!(source["definition"]["imports_to_keep"], 3);
    let image = daemon.get("/v1/images/debian12").json();
    assert_eq!(
        (&image["digest"], &image["boot_source"]),
        (&daemon.content(&digest), &json!("debian-12"))
    );
    assert_eq!(image["aliases"], json!(["debian12"]));
    let vm = daemon
        .post("/v1/vms", &json!({"name": "web", "image": "debian12"}))
        .json();
    assert_eq!(vm["image_digest"], daemon.content(&digest), "{vm}");
    let volume = json!({"name": "data", "source": {"kind": "image", "image": "debian12"}});
    assert_eq!(daemon.begin("/v1/volumes", &volume)["phase"], "Succeeded");

    // The same, unchanged: one request, nothing is fetched, and a restart does not poll again.
    let blobs = registry.blobs_asked();
    assert_eq!(sync(&daemon, "debian-12")["phase"], "Succeeded");
    assert_eq!(registry.blobs_asked(), blobs);
    let polls = registry.polls("12");
    daemon.crash_and_restart();
    let source = until_current(&daemon, "debian-12", 1);
    assert!(source["next_poll"].is_string(), "{source}");
    assert_eq!(registry.polls("12"), polls);
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    for line in [
        "karat_boot_source_outdated{name=\"debian-12\",pending=\"false\"} 0",
        "karat_boot_source_failures{name=\"debian-12\"} 0",
        "karat_boot_source_last_success_timestamp_seconds{name=\"debian-12\"} ",
        "karat_image_service_ready 1",
        "karat_store_info{store=\"default\",default=\"true\"",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}

#[test]
fn new_machines_get_the_new_image_and_the_fourth_import_removes_the_oldest_unused() {
    let registry = Registry::start();
    let daemon = start(&registry);
    let first = registry.push("12", 1);
    put(&daemon, "debian-12", &wish(&registry));
    until_current(&daemon, "debian-12", 1);
    let old = daemon
        .post("/v1/vms", &json!({"name": "old", "image": "debian12"}))
        .json();
    let first_content = daemon.content(&first);
    assert_eq!(old["image_digest"], first_content);
    let mut digests = vec![first.clone()];
    for fill in 2..=4 {
        digests.push(registry.push("12", fill));
        let done = sync(&daemon, "debian-12");
        assert_eq!(done["phase"], "Succeeded", "{done}");
        let image = daemon.get("/v1/images/debian12").json();
        assert_eq!(
            (&image["digest"], &image["id"]),
            (&daemon.content(digests.last().unwrap()), &done["result"])
        );
    }
    // The first is in use, so the second goes.
    let source = until_current(&daemon, "debian-12", 3);
    let kept: Vec<_> = source["imports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["digest"].as_str().unwrap())
        .collect();
    assert_eq!(kept, [digests[3].as_str(), &digests[2], &digests[0]]);
    daemon
        .get(&format!("/v1/images/{}", digests[1]))
        .problem(404, "not_found");
    assert_eq!(daemon.vm("old")["image_digest"], first_content);
    let new = daemon
        .post("/v1/vms", &json!({"name": "new", "image": "debian12"}))
        .json();
    assert_eq!(new["image_digest"], daemon.content(&digests[3]));
    // Unused and one too many, it goes when a fifth comes.
    assert_eq!(daemon.delete("/v1/vms/old").status, 204);
    registry.push("12", 5);
    sync(&daemon, "debian-12");
    until_current(&daemon, "debian-12", 3);
    daemon.get(&format!("/v1/images/{first}")).problem(404, "not_found");
}

#[test]
fn a_source_that_does_not_answer_is_told_and_tried_again() {
    let registry = Registry::start();
    let digest = registry.push("12", 7);
    let daemon = start(&registry);
    put(&daemon, "debian-12", &wish(&registry));
    until_current(&daemon, "debian-12", 1);
    registry.set_down(true);
    let failed = sync(&daemon, "debian-12");
    assert_eq!(failed["error"]["code"], "registry_unavailable", "{failed}");
    let source = wait_for("the failure", || {
        Some(show(&daemon, "debian-12")).filter(|source| condition(source, "UpToDate")["reason"] == "PollFailed")
    });
    assert_eq!(
        (&source["failures"], &source["last_error"]["code"]),
        (&json!(1), &json!("registry_status"))
    );
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(
        metrics.contains("karat_boot_source_outdated{name=\"debian-12\",pending=\"false\"} 1"),
        "{metrics}"
    );
    let events = daemon.get("/v1/events").json().to_string();
    assert!(events.contains("PollFailed"), "{events}");
    // What was imported is still there.
    assert_eq!(
        daemon.get("/v1/images/debian12").json()["digest"],
        daemon.content(&digest)
    );
    registry.set_down(false);
    assert_eq!(sync(&daemon, "debian-12")["phase"], "Succeeded");
    assert_eq!(until_current(&daemon, "debian-12", 1)["failures"], 0);
}

#[test]
fn files_define_sources_and_the_api_changes_them() {
    let registry = Registry::start();
    registry.push("12", 7);
    let daemon = start(&registry);
    let file = |name: &str, schedule: &str| {
        format!(
            "[[boot_source]]\nname = {name:?}\nsource = {{ registry = \"docker://{}\" }}\nschedule = {schedule:?}\nmanaged = \"{name}-latest\"\n",
            registry.reference("12")
        )
    };
    std::fs::create_dir(daemon.path("system.d")).unwrap();
    std::fs::create_dir(daemon.path("custom.d")).unwrap();
    std::fs::write(daemon.path("system.d/a.toml"), file("shipped", "@daily")).unwrap();
    std::fs::write(daemon.path("custom.d/b.toml"), file("bad", "at noon")).unwrap();
    let list = daemon.get("/v1/boot-sources").json();
    assert_eq!(
        (&list["items"][0]["name"], &list["items"][0]["origin"]),
        (&json!("shipped"), &json!("system")),
        "{list}"
    );
    assert!(
        list["problems"][0]
            .as_str()
            .unwrap()
            .contains("custom.d/b.toml:4: schedule"),
        "{list}"
    );
    sync(&daemon, "shipped");
    until_current(&daemon, "shipped", 1);
    daemon.delete("/v1/boot-sources/shipped").problem(409, "wrong_state");

    let off = edit(&daemon, "shipped", &json!({"enabled": false, "imports_to_keep": 1}));
    assert_eq!(
        (&off["definition"]["enabled"], &off["definition"]["schedule"]),
        (&json!(false), &json!("@daily")),
        "{off}"
    );
    assert_eq!(off["written"], json!({"enabled": false, "imports_to_keep": 1}));
    daemon
        .post("/v1/boot-sources/shipped/sync", &json!({}))
        .problem(409, "wrong_state");
    wait_for("it to be off", || {
        (condition(&show(&daemon, "shipped"), "UpToDate")["reason"] == "Disabled").then_some(())
    });
    // Switched off, its alias still leads to what was imported.
    assert_eq!(daemon.get("/v1/images/shipped-latest").json()["boot_source"], "shipped");
    assert_eq!(daemon.delete("/v1/boot-sources/shipped").status, 204);
    assert_eq!(show(&daemon, "shipped")["definition"]["enabled"], true);
}

#[test]
fn a_deleted_source_keeps_or_gives_up_its_images_as_it_says() {
    let registry = Registry::start();
    registry.push("12", 7);
    let daemon = start(&registry);
    put(&daemon, "debian-12", &wish(&registry));
    until_current(&daemon, "debian-12", 1);
    assert_eq!(daemon.delete("/v1/boot-sources/debian-12").status, 204);
    wait_for("the source to go", || {
        (daemon.get("/v1/boot-sources/debian-12").status == 404).then_some(())
    });
    let image = daemon.get("/v1/images/debian12").json();
    assert_eq!(image["state"], "active");
    assert_eq!(
        daemon
            .delete(&format!("/v1/images/{}", image["id"].as_str().unwrap()))
            .status,
        204
    );
    daemon.get("/v1/images/debian12").problem(404, "not_found");

    let mut wish = wish(&registry);
    wish["retention"] = json!("None");
    put(&daemon, "debian-12", &wish);
    let source = until_current(&daemon, "debian-12", 1);
    let id = source["imports"][0]["image"].as_str().unwrap().to_owned();
    assert_eq!(daemon.delete("/v1/boot-sources/debian-12").status, 204);
    wait_for("the image to go", || {
        (daemon.get(&format!("/v1/images/{id}")).status == 404).then_some(())
    });
    daemon.get("/v1/images/debian12").problem(404, "not_found");
}

#[test]
fn what_can_not_be_a_source_is_refused_with_every_field() {
    let registry = Registry::start();
    let daemon = start(&registry);
    let bad = json!({"source": {"registry": "x y"}, "schedule": "at noon", "imports_to_keep": 0});
    let refused = put(&daemon, "a", &bad).problem(422, "invalid_spec");
    let fields: Vec<_> = refused["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["source.registry", "schedule", "managed", "imports_to_keep"],
        "{refused}"
    );
    put(&daemon, "a", &json!({"sourse": {}})).problem(400, "invalid_request");
    assert_eq!(daemon.post("/v1/images", &json!({"name": "debian12"})).status, 201);
    let taken = put(&daemon, "a", &wish(&registry)).problem(422, "invalid_spec");
    assert_eq!(taken["errors"][0]["field"], "managed", "{taken}");
    daemon.get("/v1/boot-sources/a").problem(404, "not_found");
    assert_eq!(daemon.get("/v1/boot-sources").json(), json!({"items": []}));
}

#[test]
fn what_was_refused_is_not_fetched_again_until_there_is_something_else() {
    let registry = Registry::start();
    let bad = registry.push_without_disk("12");
    let daemon = start(&registry);
    put(&daemon, "debian-12", &wish(&registry));
    let source = wait_for("the refusal", || {
        Some(show(&daemon, "debian-12")).filter(|source| condition(source, "UpToDate")["reason"] == "ImportFailed")
    });
    assert_eq!(
        (&source["last_error"]["code"], &source["last_error"]["importing"]),
        (&json!("container_no_disk"), &json!(true))
    );
    assert_eq!(condition(&source, "Progressing")["status"], "False");
    assert!(source["next_poll"].is_string(), "{source}");
    // No record of it stays, and no bytes.
    wait_for("the record to go", || {
        (daemon.get("/v1/images").json() == json!({"items": []})).then_some(())
    });
    assert_eq!(
        std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count(),
        0
    );
    daemon.get(&format!("/v1/images/{bad}")).problem(404, "not_found");
    let good = registry.push("12", 7);
    assert_eq!(sync(&daemon, "debian-12")["phase"], "Succeeded");
    assert_eq!(until_current(&daemon, "debian-12", 1)["imports"][0]["digest"], good);
}

#[test]
fn an_import_of_a_source_goes_on_after_a_crash_and_makes_one_image() {
    let registry = Registry::start();
    let digest = registry.push("12", 7);
    registry.hold_blobs(true);
    let mut daemon = start(&registry);
    put(&daemon, "debian-12", &wish(&registry));
    wait_for("a blob to be asked for", || (registry.blobs_asked() > 0).then_some(()));
    let source = show(&daemon, "debian-12");
    assert_eq!(
        (&source["importing"], &source["imports"]),
        (&json!(digest), &json!([])),
        "{source}"
    );
    daemon.get("/v1/images/debian12").problem(404, "not_found");
    daemon.crash_and_restart();
    registry.hold_blobs(false);
    until_current(&daemon, "debian-12", 1);
    let images = daemon.get("/v1/images").json();
    assert_eq!(images["items"].as_array().unwrap().len(), 1, "{images}");
    assert_eq!(
        daemon.get("/v1/images/debian12").json()["digest"],
        daemon.content(&digest)
    );
}
