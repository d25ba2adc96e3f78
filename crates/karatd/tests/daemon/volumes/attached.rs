//! Volumes as disks of machines.

use serde_json::{Value, json};

use super::blank;
use crate::harness::{Answer, Daemon};

fn attach(daemon: &Daemon, vm: &str, wish: &Value) -> Answer {
    daemon.post(&format!("/v1/vms/{vm}/disks"), wish)
}

#[test]
fn a_volume_is_a_disk_of_one_machine_and_errors_name_it() {
    let daemon = Daemon::start_with("reserved_space = 0");
    for name in ["web", "db"] {
        daemon.create(name, "");
    }
    daemon.make(&blank("data"));
    let tag = daemon.get("/v1/vms/web").header("etag").unwrap().to_owned();
    let vm = attach(
        &daemon,
        "web",
        &json!({"volume": "data", "bus": "scsi", "serial": "s-1", "cache": "direct", "boot_order": 1}),
    );
    assert_eq!(vm.status, 200, "{vm:?}");
    let disk = &vm.json()["spec"]["disks"][0];
    assert_eq!(
        (&disk["name"], &disk["volume"], &disk["bus"]),
        (&json!("data"), &json!("data"), &json!("scsi"))
    );
    assert_ne!(vm.header("etag"), Some(tag.as_str()));
    assert_eq!(
        daemon.volume("data")["attached_to"],
        json!([{"vm": "web", "disk": "data", "read_only": false}])
    );
    for read_only in [false, true] {
        let held = attach(&daemon, "db", &json!({"volume": "data", "read_only": read_only})).problem(409, "in_use");
        assert!(held["detail"].as_str().unwrap().contains("machine web"), "{held}");
    }
    let twice = attach(&daemon, "web", &json!({"volume": "data"}));
    assert_eq!(twice.status, 422, "{twice:?}");
    let held = daemon.delete("/v1/volumes/data").problem(409, "in_use");
    assert!(
        held["detail"]
            .as_str()
            .unwrap()
            .contains("karat volume detach data web"),
        "{held}"
    );
    let spec =
        json!({"name": "third", "boot": {"kernel": daemon.path("state/files/kernel")}, "disks": [{"volume": "data"}]});
    daemon.post("/v1/vms", &spec).problem(409, "in_use");
    assert_eq!(daemon.delete("/v1/vms/web/disks/data").status, 200);
    daemon.delete("/v1/vms/web/disks/data").problem(404, "not_found");
    assert_eq!(daemon.post("/v1/vms", &spec).status, 201);
    // Who only reads may be many.
    daemon.delete("/v1/vms/third/disks/data");
    for vm in ["web", "db"] {
        assert_eq!(
            attach(&daemon, vm, &json!({"volume": "data", "read_only": true})).status,
            200
        );
    }
    daemon
        .post(
            "/v1/vms",
            &json!({"name": "w", "boot": spec["boot"], "disks": [{"volume": "data"}]}),
        )
        .problem(409, "in_use");
    assert_eq!(daemon.delete("/v1/vms/web").status, 204);
    assert_eq!(daemon.volume("data")["attached_to"].as_array().unwrap().len(), 1);
}

#[test]
fn of_two_that_attach_at_once_one_wins() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.make(&blank("data"));
    let names: Vec<String> = (0..6).map(|number| format!("vm{number}")).collect();
    for name in &names {
        daemon.create(name, "");
    }
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let tries: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| attach(&daemon, name, &json!({"volume": "data"})).status))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 409).count(), 5, "{codes:?}");
}

#[test]
fn names_of_disks_stay_when_others_go() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let files: Vec<_> = ["a", "b"]
        .map(|name| daemon.path("state/files").join(name))
        .into_iter()
        .collect();
    for file in &files {
        std::fs::write(file, vec![0; 1 << 20]).unwrap();
    }
    let spec = json!({"name": "web", "boot": {"kernel": daemon.path("state/files/kernel")},
        "disks": [{"path": files[0]}, {"path": files[1]}]});
    assert_eq!(daemon.post("/v1/vms", &spec).status, 201);
    let vm = daemon.delete("/v1/vms/web/disks/disk1").json();
    assert_eq!(vm["spec"]["disks"].as_array().unwrap().len(), 1, "{vm}");
    assert_eq!(vm["spec"]["disks"][0]["name"], "disk2");
    let missing = attach(&daemon, "web", &json!({"path": daemon.path("state/files/none")}));
    assert_eq!(missing.status, 422, "{missing:?}");
    let both = attach(&daemon, "web", &json!({"path": files[0], "volume": "x"}));
    assert_eq!(both.status, 422, "{both:?}");
}

#[test]
fn a_running_machine_keeps_its_volume_from_others_and_makes_it_larger_itself() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.create("web", "");
    let volume = daemon.make(&blank("data"));
    assert_eq!(attach(&daemon, "web", &json!({"volume": "data"})).status, 200);
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
    daemon.delete("/v1/vms/web/disks/data").problem(409, "wrong_state");
    daemon.make(&blank("more"));
    attach(&daemon, "web", &json!({"volume": "more"})).problem(409, "wrong_state");
    for (path, body) in [
        ("/v1/volumes/data/check", json!({"repair": "all"})),
        ("/v1/volumes/data/check", json!({})),
        ("/v1/volumes/data/convert", json!({"name": "copy", "format": "qcow2"})),
        (
            "/v1/volumes",
            json!({"name": "copy", "source": {"kind": "volume", "volume": "data"}}),
        ),
    ] {
        let held = daemon.post(path, &body).problem(409, "in_use");
        assert!(held["detail"].as_str().unwrap().contains("machine web"), "{held}");
    }
    let grown = daemon.begin("/v1/volumes/data/resize", &json!({"size": "5Mi"}));
    assert_eq!(grown["phase"], "Succeeded", "{grown}");
    assert_eq!(daemon.volume("data")["size_bytes"], 5 << 20);
    assert_eq!(daemon.file(&volume).metadata().unwrap().len(), 5 << 20);
    assert_eq!(daemon.begin("/v1/vms/web/stop", &json!({}))["phase"], "Succeeded");
    assert_eq!(daemon.begin("/v1/volumes/data/check", &json!({}))["phase"], "Succeeded");
    assert_eq!(daemon.delete("/v1/vms/web/disks/data").status, 200);
    assert_eq!(daemon.delete("/v1/volumes/data").status, 204);
}

#[test]
fn a_machine_does_not_start_before_its_volume_is_there() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.create("web", "");
    daemon.post("/v1/volumes", &json!({"name": "data", "source": {"kind": "upload"}}));
    assert_eq!(attach(&daemon, "web", &json!({"volume": "data"})).status, 200);
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Failed", "{started}");
    assert!(
        started["error"]["detail"].as_str().unwrap().contains("not sent yet"),
        "{started}"
    );
    let sent = daemon.put("data", "", &vec![7; 1 << 20]);
    assert_eq!(daemon.over(sent.header("location").unwrap())["phase"], "Succeeded");
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
}

#[test]
fn who_has_a_volume_is_told_by_name() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let volume = daemon.make(&blank("data"));
    let mut spec = daemon.spec("web", "");
    spec["disks"] = json!([{"volume": "data"}]);
    assert_eq!(daemon.post("/v1/vms", &spec).status, 201);
    let file = std::fs::File::open(daemon.file(&volume)).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let operation = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(operation["error"]["code"], "in_use", "{operation}");
    let told = operation["error"]["detail"].as_str().unwrap();
    assert!(
        told.contains("volume data is in use") && !told.contains(".raw"),
        "{told}"
    );
    // As while it is being checked, or copied.
    let database = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    let id = operation["id"].as_str().unwrap();
    let job = format!(r#"{{"operation":"{id}","task":{{"check":{{"repair":null}}}}}}"#);
    let update = "UPDATE volumes SET record = json_set(record, '$.job', json(?1))";
    assert_eq!(database.execute(update, [job]).unwrap(), 1);
    let operation = daemon.begin("/v1/vms/web/start", &json!({}));
    let told = operation["error"]["detail"].as_str().unwrap();
    assert!(
        told.contains("volume data; wait for operation ") && told.contains(id),
        "{told}"
    );
}
