//! Image records: made, filled, changed, kept from use, removed.

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, wait_for};
use crate::images::{DIGEST, DISK_BYTES, seed};
use crate::registry::Registry;

const PATCH: &str = "Content-Type: application/merge-patch+json\r\n";

fn patch(daemon: &Daemon, image: &str, change: &Value) -> Answer {
    let path = format!("/v1/images/{image}");
    daemon.request("PATCH", &path, PATCH, &change.to_string())
}

fn fields(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| error["field"].as_str().unwrap()).collect()
}

fn import(registry: &Registry, tag: &str) -> Value {
    json!({"method": "registry", "reference": registry.reference(tag)})
}

/// Makes a record and imports into it.
fn create(daemon: &Daemon, registry: &Registry, name: &str, more: &Value) -> Value {
    let mut wish = json!({"name": name, "import": import(registry, "1")});
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let operation = daemon.begin("/v1/images", &wish);
    assert_eq!(operation["phase"], "Succeeded", "{operation}");
    assert_eq!(operation["kind"], "image_import");
    daemon.get(&format!("/v1/images/{name}")).json()
}

#[test]
fn images_of_a_store_without_records_get_one_and_keep_their_names() {
    let mut daemon = Daemon::start_seeded("reserved_space = 0", seed);
    let image = daemon.get("/v1/images/x-1").json();
    assert_eq!((&image["digest"], &image["state"]), (&json!(DIGEST), &json!("active")));
    assert_eq!(image["virtual_size_bytes"], DISK_BYTES);
    let vm = daemon.post("/v1/vms", &json!({"name": "web", "image": "x-1"})).json();
    assert_eq!(vm["image_digest"], DIGEST, "{vm}");
    daemon.crash_and_restart();
    let list = daemon.get("/v1/images").json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["id"], image["id"]);
    assert_eq!(list["items"][0]["used_by"], json!(["web"]));
}

#[test]
fn a_record_goes_from_queued_over_failed_to_active_and_each_state_says_what_it_allows() {
    let registry = Registry::start();
    let daemon = Daemon::start_with(&registry.config());
    let info = daemon.get("/v1/images/import-info").json();
    assert!(
        info["methods"].as_array().unwrap().contains(&json!("registry")),
        "{info}"
    );
    let answer = daemon.post("/v1/images", &json!({"name": "web", "description": "for web servers"}));
    assert_eq!(answer.status, 201, "{answer:?}");
    let image = &answer.json()["image"];
    assert_eq!(
        (&image["state"], &image["visibility"]),
        (&json!("queued"), &json!("shared"))
    );
    assert_eq!(
        answer.header("location").unwrap(),
        format!("/v1/images/{}", image["id"].as_str().unwrap())
    );
    daemon
        .post("/v1/vms", &json!({"name": "a", "image": "web"}))
        .problem(409, "wrong_state");
    daemon
        .post("/v1/images/web/deactivate", &json!({}))
        .problem(409, "wrong_state");

    registry.push_without_disk("bad");
    let failed = daemon.begin("/v1/images/web/import", &import(&registry, "bad"));
    assert_eq!(failed["error"]["code"], "image_refused", "{failed}");
    let image = daemon.get("/v1/images/web").json();
    assert_eq!(
        (&image["state"], &image["failure"]["code"]),
        (&json!("failed"), &json!("container_no_disk"))
    );

    let digest = registry.push("1", 7);
    let done = daemon.begin("/v1/images/web/import", &import(&registry, "1"));
    assert_eq!(
        (&done["phase"], &done["result"]),
        (&json!("Succeeded"), &daemon.content(&digest)),
        "{done}"
    );
    let image = daemon.get("/v1/images/web").json();
    assert_eq!(
        (&image["state"], &image["digest"]),
        (&json!("active"), &daemon.content(&digest))
    );
    assert_eq!(image["failure"], Value::Null);
    daemon
        .post("/v1/images/web/import", &import(&registry, "1"))
        .problem(409, "wrong_state");
    patch(&daemon, "web", &json!({"disk_format": "raw"})).problem(409, "wrong_state");
    // Pulling what a record has makes no second one.
    daemon.begin("/v1/images", &json!({"reference": registry.reference("1")}));
    assert_eq!(daemon.get("/v1/images").json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn everything_wrong_with_a_record_is_told_at_once_with_its_code() {
    let daemon = Daemon::start();
    let bad =
        json!({"name": "Web", "min_disk_gib": 1_u64 << 40, "properties": {"hw_disk_bus": "floppy", "vm_mode": "HVM"}});
    let refused = daemon.post("/v1/images", &bad).problem(422, "invalid_spec");
    assert_eq!(
        fields(&refused),
        ["name", "min_disk_gib", "properties.hw_disk_bus", "properties.vm_mode"],
        "{refused}"
    );
    assert!(refused.to_string().contains("property_value_invalid"), "{refused}");
    daemon
        .post("/v1/images", &json!({"name": "import-info"}))
        .problem(422, "invalid_spec");
    let both = json!({"name": "a", "reference": "q.io/x/y:1"});
    assert_eq!(
        fields(&daemon.post("/v1/images", &both).problem(422, "invalid_spec")),
        ["reference"]
    );
    let web = json!({"name": "a", "import": {"method": "teleport"}});
    daemon.post("/v1/images", &web).problem(400, "invalid_request");
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
}

#[test]
fn names_are_unique_and_changes_go_by_revision() {
    let daemon = Daemon::start();
    for name in ["a", "b"] {
        assert_eq!(daemon.post("/v1/images", &json!({"name": name})).status, 201);
    }
    daemon
        .post("/v1/images", &json!({"name": "a"}))
        .problem(409, "name_taken");
    patch(&daemon, "b", &json!({"name": "a"})).problem(409, "name_taken");
    let edited = patch(
        &daemon,
        "b",
        &json!({"name": "c", "hidden": true, "properties": {"team": "db", "os_distro": "debian"}, "tags": ["lts"]}),
    );
    assert_eq!(edited.status, 200, "{edited:?}");
    let etag = edited.header("etag").unwrap().to_owned();
    let (id, shown) = (edited.json()["id"].clone(), daemon.get("/v1/images/c").json());
    assert_eq!((&shown["id"], &shown["properties"]["team"]), (&id, &json!("db")));
    // Hidden ones are found by name and are in a list of their own.
    let listed = |query: &str| daemon.get(&format!("/v1/images{query}")).json()["items"][0]["name"].clone();
    assert_eq!((listed(""), listed("?hidden=true")), (json!("a"), json!("c")));
    let gone = patch(&daemon, "c", &json!({"properties": {"team": null}, "hidden": null}));
    assert_eq!(gone.json()["properties"], json!({"os_distro": "debian"}));
    let late = format!("{PATCH}If-Match: {etag}\r\n");
    let late = daemon.request("PATCH", "/v1/images/c", &late, r#"{"description": "x"}"#);
    late.problem(412, "revision_mismatch");
    patch(&daemon, "c", &json!({"owner": "me"})).problem(400, "invalid_request");
}

#[test]
fn a_protected_image_stays_and_a_deactivated_one_makes_no_machine() {
    let registry = Registry::start();
    registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    create(&daemon, &registry, "web", &json!({"protected": true}));
    daemon.delete("/v1/images/web").problem(409, "image_protected");
    assert_eq!(
        daemon.post("/v1/images/web/deactivate", &json!({})).json()["state"],
        "deactivated"
    );
    let refused = daemon.post("/v1/vms", &json!({"name": "a", "image": "web"}));
    assert!(
        refused.problem(409, "wrong_state")["detail"]
            .as_str()
            .unwrap()
            .contains("reactivate")
    );
    assert_eq!(
        daemon.post("/v1/images/web/reactivate", &json!({})).json()["state"],
        "active"
    );
    assert_eq!(
        daemon.post("/v1/vms", &json!({"name": "a", "image": "web"})).status,
        201
    );
    patch(&daemon, "web", &json!({"protected": false}));
    let used = daemon.delete("/v1/images/web").problem(409, "in_use");
    assert!(used["detail"].as_str().unwrap().contains("used by a"), "{used}");
    assert_eq!(daemon.get("/v1/images/web").json()["state"], "active");
}

#[test]
fn a_machine_keeps_to_what_its_image_asks_for() {
    let registry = Registry::start();
    registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    let asks = json!({"min_disk_gib": 1, "min_ram_mib": 256, "properties": {
        "hw_cpu_sockets": "2", "hw_watchdog_action": "reset", "hw_vif_multiqueue_enabled": "true"}});
    let image = create(&daemon, &registry, "web", &asks);
    assert_eq!(image["conditions"][0]["code"], "watchdog_not_available", "{image}");
    let small = json!({"name": "a", "image": "web", "memory": "128Mi"});
    let refused = daemon.post("/v1/vms", &small).problem(422, "invalid_spec");
    assert_eq!(fields(&refused), ["disk_size", "memory"], "{refused}");
    assert!(refused.to_string().contains("image_min_ram"), "{refused}");
    let vm = daemon
        .post(
            "/v1/vms",
            &json!({"name": "a", "image": "web", "disk_size": "1Gi", "cpus": 2}),
        )
        .json();
    assert_eq!(vm["spec"]["topology"]["sockets"], 2, "{vm}");
    let events = daemon.get("/v1/events").json().to_string();
    assert!(events.contains("made without hw_watchdog_action"), "{events}");
    // What users write wins; what can not be met is refused.
    let own = json!({"name": "b", "image": "web", "disk_size": "1Gi", "cpus": 2, "topology": {"sockets": 1, "cores": 2, "threads": 1}});
    assert_eq!(daemon.post("/v1/vms", &own).json()["spec"]["topology"]["sockets"], 1);
    patch(&daemon, "web", &json!({"properties": {"hw_vif_model": "e1000"}}));
    let refused = daemon.post("/v1/vms", &json!({"name": "c", "image": "web", "disk_size": "1Gi"}));
    assert!(
        refused
            .problem(422, "invalid_spec")
            .to_string()
            .contains("vif_model_not_available")
    );
}

#[test]
fn the_root_disk_is_on_the_bus_that_the_image_asks_for_unless_the_machine_says_otherwise() {
    let registry = Registry::start();
    registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    let asks = json!({"properties": {"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}});
    let image = create(&daemon, &registry, "web", &asks);
    assert_eq!(image["conditions"], Value::Null, "{image}");
    let make = |name: &str, more: &Value| {
        let mut wish = json!({"name": name, "image": "web", "boot": {"cmdline": "sda"}});
        wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.post("/v1/vms", &wish).json()
    };
    assert_eq!(make("a", &json!({}))["spec"]["disk_bus"], "scsi");
    let started = daemon.begin("/v1/vms/a/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
    let events = daemon.get("/v1/events").json().to_string();
    assert!(!events.contains("made without"), "{events}");

    assert_eq!(make("b", &json!({"disk_bus": "virtio"}))["spec"]["disk_bus"], "virtio");
    let refused = daemon.begin("/v1/vms/b/start", &json!({}));
    assert!(refused.to_string().contains("not on the SCSI bus"), "{refused}");
    // It can be changed while the machine stands still.
    let changed = daemon.request("PATCH", "/v1/vms/b", PATCH, r#"{"disk_bus": "scsi"}"#);
    assert_eq!(changed.json()["spec"]["disk_bus"], "scsi", "{changed:?}");
    let started = daemon.begin("/v1/vms/b/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
}

#[test]
fn the_same_bytes_under_two_records_are_stored_once_and_go_with_the_last() {
    let registry = Registry::start();
    let digest = registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    let first = create(&daemon, &registry, "one", &json!({}));
    let asked = registry.blobs_asked();
    let second = create(&daemon, &registry, "two", &json!({}));
    assert_eq!(
        (&first["digest"], &second["digest"]),
        (&daemon.content(&digest), &first["digest"])
    );
    assert_eq!(registry.blobs_asked(), asked);
    let sealed = || std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count();
    assert_eq!(sealed(), 1);
    assert_eq!(daemon.delete("/v1/images/one").status, 204);
    assert_eq!(sealed(), 1);
    assert_eq!(daemon.get("/v1/images/two").json()["state"], "active");
    assert_eq!(daemon.delete("/v1/images/two").status, 204);
    assert_eq!(sealed(), 0);
    daemon.get(&format!("/v1/images/{digest}")).problem(404, "not_found");
}

#[test]
fn an_import_goes_on_after_a_crash_and_deletion_calls_it_off() {
    let registry = Registry::start();
    registry.push("1", 7);
    registry.hold_blobs(true);
    let mut daemon = Daemon::start_with(&registry.config());
    let answer = daemon.post("/v1/images", &json!({"name": "web", "import": import(&registry, "1")}));
    assert_eq!(answer.status, 202);
    let operation = answer.header("location").unwrap().to_owned();
    wait_for("a blob to be asked for", || (registry.blobs_asked() > 0).then_some(()));
    daemon.crash_and_restart();
    let image = daemon.get("/v1/images/web").json();
    assert_eq!(image["state"], "importing", "{image}");
    assert!(operation.ends_with(image["operation"].as_str().unwrap()));
    registry.hold_blobs(false);
    assert_eq!(daemon.over(&operation)["phase"], "Succeeded");
    assert_eq!(daemon.get("/v1/images/web").json()["state"], "active");
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(
        metrics.contains("karat_image_import_restarts_total{image=\"web\"} 1"),
        "{metrics}"
    );

    registry.push("2", 8);
    registry.hold_blobs(true);
    let asked = registry.blobs_asked();
    let answer = daemon.post("/v1/images", &json!({"name": "gone", "import": import(&registry, "2")}));
    let operation = answer.header("location").unwrap().to_owned();
    wait_for("a blob to be asked for", || {
        (registry.blobs_asked() > asked).then_some(())
    });
    assert_eq!(daemon.delete("/v1/images/gone").status, 204);
    assert_eq!(daemon.over(&operation)["phase"], "Cancelled");
    wait_for("the record to go", || {
        (daemon.get("/v1/images/gone").status == 404).then_some(())
    });
    registry.hold_blobs(false);
}

#[test]
fn a_damaged_image_is_found_and_makes_no_machine() {
    let registry = Registry::start();
    registry.push("1", 7);
    let daemon = Daemon::start_with(&registry.config());
    let image = create(&daemon, &registry, "web", &json!({}));
    let path = format!("/v1/images/{}/verify", image["id"].as_str().unwrap());
    let verified = daemon.begin(&path, &json!({}));
    assert_eq!(
        (&verified["phase"], &verified["kind"]),
        (&json!("Succeeded"), &json!("image_verify")),
        "{verified}"
    );
    let hex = image["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let disk = daemon.path("state/images/sha256").join(hex).join("disk.raw");
    std::fs::remove_file(&disk).unwrap(); // The sealed file itself can not be written.
    std::fs::write(&disk, "short").unwrap();
    daemon
        .post("/v1/vms", &json!({"name": "a", "image": "web"}))
        .problem(502, "digest_mismatch");
    let verified = daemon.begin(&path, &json!({}));
    assert_eq!(verified["error"]["code"], "digest_mismatch", "{verified}");
    assert_eq!(daemon.get("/v1/images/web").json()["state"], "deactivated");
    daemon
        .post("/v1/vms", &json!({"name": "a", "image": "web"}))
        .problem(409, "wrong_state");
}
