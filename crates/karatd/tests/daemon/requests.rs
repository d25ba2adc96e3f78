//! Requests that are wrong, each answered by a problem in words; and what a well-formed one gets.

use serde_json::json;

use crate::harness::{Daemon, wait_for};

#[test]
fn the_daemon_describes_itself() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/healthz").json()["status"], "ok");
    let document = daemon.get("/openapi.json").json();
    assert!(document["paths"]["/v1/vms/{vm}/start"]["post"].is_object());
    assert_eq!(daemon.get("/v1/vms").json(), json!({"items": []}));
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
    assert_eq!(daemon.get("/v1/operations").json(), json!({"items": []}));
    let events = daemon.get("/v1/events").json();
    assert_eq!(events["items"][0]["reason"], "DaemonStarted");
}

#[test]
fn every_wrong_request_is_a_problem() {
    let daemon = Daemon::start();
    let json = "Content-Type: application/json\r\n";
    daemon.get("/v2/vms").problem(404, "unknown_path");
    daemon.request("PUT", "/v1/vms", "", "").problem(405, "invalid_request");
    daemon.get("/v1/vms/none").problem(404, "not_found");
    daemon.get("/v1/images/sha256:00").problem(404, "not_found");
    daemon.get("/v1/operations/7").problem(400, "invalid_request");
    daemon
        .get("/v1/operations/00000000-0000-0000-0000-000000000000")
        .problem(404, "not_found");
    daemon.get("/v1/events?before=1").problem(400, "invalid_request");
    daemon
        .request("POST", "/v1/vms", json, "{")
        .problem(400, "invalid_request");
    daemon
        .request("POST", "/v1/vms", "Content-Type: text/plain\r\n", "{}")
        .problem(415, "invalid_request");
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20));
    daemon
        .request("POST", "/v1/vms", json, &huge)
        .problem(413, "invalid_request");
    let unknown = daemon
        .post("/v1/vms", &json!({"name": "a", "cpu": 4}))
        .problem(400, "invalid_request");
    assert!(
        unknown["detail"].as_str().unwrap().contains("unknown field `cpu`"),
        "{unknown}"
    );
    let reference = daemon.post("/v1/images", &json!({"reference": "https://q.io/x"}));
    let refused = reference.problem(422, "invalid_spec");
    assert_eq!(refused["errors"][0]["field"], "reference");
    daemon.post("/v1/vms/none/start", &json!({})).problem(404, "not_found");
    daemon
        .post("/v1/vms/none/start", &json!({"fast": true}))
        .problem(400, "invalid_request");
}

#[test]
fn a_machine_that_can_not_be_is_refused_with_every_field_and_leaves_nothing() {
    let daemon = Daemon::start();
    let spec = json!({
        "name": "Web", "cpus": 65, "memory": "900Ti",
        "boot": {"kernel": "/etc/passwd"}, "disks": [{"path": "../disk"}],
    });
    let refused = daemon.post("/v1/vms", &spec).problem(422, "invalid_spec");
    let fields: Vec<_> = refused["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["field"].as_str().unwrap())
        .collect();
    for field in ["name", "cpus", "memory", "boot.kernel", "disks[0].path"] {
        assert!(fields.contains(&field), "{field} is missing in {refused}");
    }
    let memory = daemon.post("/v1/vms", &json!({"name": "big", "image": "x", "memory": "900Ti"}));
    assert!(
        memory.problem(422, "invalid_spec")["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("the host has")
    );
    let image = daemon.post("/v1/vms", &json!({"name": "web", "image": "q.io/none:1"}));
    assert_eq!(image.problem(422, "invalid_spec")["errors"][0]["field"], "image");
    // A link beneath the allowed directory that leads out of it.
    let link = daemon.path("state/files/link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    let leads_out = daemon.post("/v1/vms", &json!({"name": "web", "boot": {"kernel": link}}));
    let told = leads_out.problem(422, "invalid_spec");
    assert_eq!(told["errors"][0]["field"], "boot.kernel");
    assert!(
        told["errors"][0]["message"].as_str().unwrap().contains("leads out"),
        "{told}"
    );
    assert_eq!(daemon.get("/v1/vms").json()["items"], json!([]));
    assert_eq!(std::fs::read_dir(daemon.path("state/vms")).unwrap().count(), 0);
}

#[test]
fn names_are_taken_once_even_by_two_at_the_same_time() {
    let daemon = Daemon::start();
    let made = daemon.create("web", "");
    daemon
        .post("/v1/vms", &daemon.spec("web", ""))
        .problem(409, "name_taken");
    assert_eq!(
        daemon.get(&format!("/v1/vms/{}", made["id"].as_str().unwrap())).json(),
        made
    );
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| daemon.post("/v1/vms", &daemon.spec("one", "")).status))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 409).count(), 7, "{codes:?}");
    assert_eq!(std::fs::read_dir(daemon.path("state/vms")).unwrap().count(), 2);
}

#[test]
fn revisions_guard_changes() {
    let daemon = Daemon::start();
    daemon.create("web", "");
    let tag = daemon.get("/v1/vms/web").header("etag").unwrap().to_owned();
    assert_eq!(tag, "\"1\"");
    daemon
        .request("DELETE", "/v1/vms/web", "If-Match: \"9\"\r\n", "")
        .problem(412, "revision_mismatch");
    daemon
        .request("DELETE", "/v1/vms/web", "If-Match: 9\r\n", "")
        .problem(400, "invalid_request");
    assert_eq!(
        daemon
            .request("DELETE", "/v1/vms/web", &format!("If-Match: {tag}\r\n"), "")
            .status,
        204
    );
    daemon.get("/v1/vms/web").problem(404, "not_found");
}

#[test]
fn a_client_that_sends_half_a_request_is_hung_up_on() {
    use std::io::{Read, Write};
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    stream.write_all(b"GET /healthz HT").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_stopped_machine_is_changed_by_a_merge_patch() {
    let daemon = Daemon::start();
    daemon.create("web", "quiet");
    let patch = |headers: &str, body: serde_json::Value| {
        let headers = format!("Content-Type: application/merge-patch+json\r\n{headers}");
        daemon.request("PATCH", "/v1/vms/web", &headers, &body.to_string())
    };
    let changed = patch(
        "If-Match: \"1\"\r\n",
        json!({"cpus": 2, "memory": "128Mi", "boot": {"cmdline": null}}),
    );
    assert_eq!(
        (changed.status, changed.header("etag")),
        (200, Some("\"2\"")),
        "{changed:?}"
    );
    let spec = &changed.json()["spec"];
    assert_eq!(
        (&spec["cpus"], &spec["memory"], &spec["boot"]["cmdline"]),
        (&json!(2), &json!("128Mi"), &json!(null))
    );
    assert!(spec["boot"]["kernel"].is_string(), "{spec}");
    patch("If-Match: \"1\"\r\n", json!({"cpus": 3})).problem(412, "revision_mismatch");
    let refused = patch("", json!({"name": "db", "cpus": 2})).problem(422, "invalid_spec");
    assert_eq!(refused["errors"][0]["field"], "name");
    assert_eq!(
        patch("", json!({"cpus": 99})).problem(422, "invalid_spec")["errors"][0]["field"],
        "cpus"
    );
    patch("", json!({"disks": [{"volume": "none"}]})).problem(422, "invalid_spec");
    patch("", json!({"cpu": 1})).problem(400, "invalid_request");
    patch("", json!([])).problem(400, "invalid_request");
    daemon.begin("/v1/vms/web/start", &json!({}));
    patch("", json!({"cpus": 1})).problem(409, "wrong_state");
    assert_eq!(daemon.vm("web")["spec"]["cpus"], 2);
}

#[test]
fn what_was_asked_is_done_though_the_sender_goes_away() {
    use std::io::Write;
    let daemon = Daemon::start_with("reserved_space = 0");
    let names: Vec<_> = (0..24).map(|number| format!("data-{number}")).collect();
    for name in &names {
        let body = json!({"name": name, "size": "1Mi"}).to_string();
        let head = format!(
            "POST /v1/volumes HTTP/1.1\r\nHost: karat\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        daemon.connect().write_all(head.as_bytes()).unwrap();
    }
    for name in &names {
        wait_for("a volume nobody waits for", || {
            let volume = daemon.get(&format!("/v1/volumes/{name}"));
            (volume.status == 200 && volume.json()["state"] == "ready").then_some(())
        });
    }
}
