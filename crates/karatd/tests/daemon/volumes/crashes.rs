//! Daemons that are killed while they work on volumes.

use serde_json::{Value, json};

use super::{inspect, same};
use crate::harness::{Daemon, wait_for};

/// Begins to fill a volume, and kills the daemon while it copies; returns where the operation is. A copy that was done before
/// it could be killed is made again.
fn killed_in(daemon: &mut Daemon, wish: &Value) -> String {
    for _ in 0..20 {
        let answer = daemon.post("/v1/volumes", wish);
        assert_eq!(answer.status, 202, "{answer:?}");
        let location = answer.header("location").unwrap().to_owned();
        let caught = wait_for("the work", || {
            let operation = daemon.get(&location).json();
            let copies = operation["progress"]["step"] == "copy" && !parts(daemon).is_empty();
            (copies || operation["phase"] != "Running").then_some(copies)
        });
        if caught {
            daemon.crash();
            return location;
        }
        daemon.over(&location);
        daemon.delete(&format!("/v1/volumes/{}", wish["name"].as_str().unwrap()));
    }
    panic!("copies are too fast to be killed in");
}

/// Volumes in the making.
fn parts(daemon: &Daemon) -> Vec<String> {
    daemon
        .files()
        .into_iter()
        .filter(|file| file.ends_with(".part"))
        .collect()
}

/// A volume whose bytes take some time to be copied.
fn filled(daemon: &Daemon, name: &str, format: &str) -> Value {
    let bytes: Vec<u8> = (0..96u32 << 20).map(|at| (at >> 8).to_le_bytes()[0] | 1).collect();
    daemon.post(
        "/v1/volumes",
        &json!({"name": name, "format": format, "source": {"kind": "upload"}}),
    );
    let sent = daemon.put(name, "", &bytes);
    assert_eq!(daemon.over(sent.header("location").unwrap())["phase"], "Succeeded");
    daemon.volume(name)
}

#[test]
fn a_volume_is_filled_by_the_next_daemon_under_the_same_operation() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let source = filled(&daemon, "source", "raw");
    for (name, form) in [
        ("copy", json!({"format": "raw"})),
        ("tables", json!({"format": "qcow2"})),
        ("packed", json!({"format": "qcow2", "compressed": true})),
        (
            "written",
            json!({"format": "raw", "size": "256Mi", "preallocation": "full"}),
        ),
    ] {
        let mut wish = json!({"name": name, "source": {"kind": "volume", "volume": "source"}});
        wish.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        let location = killed_in(&mut daemon, &wish);
        assert_eq!(parts(&daemon).len(), 1, "{:?}", daemon.files());
        daemon.restart();
        let operation = daemon.over(&location);
        assert_eq!(operation["phase"], "Succeeded", "{operation}");
        let copy = daemon.volume(name);
        assert_eq!(copy["state"], "ready", "{copy}");
        inspect(&daemon, &copy);
        same(
            (copy["format"].as_str().unwrap(), &daemon.file(&copy)),
            ("raw", &daemon.file(&source)),
        );
        assert!(parts(&daemon).is_empty(), "{:?}", daemon.files());
    }
}

#[test]
fn work_that_ends_with_the_daemon_goes_on_with_the_next_and_can_be_cancelled() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    daemon.make(&super::blank("source"));
    // So much has to be written first that it lasts.
    let wish = json!({"name": "copy", "size": "1Gi", "preallocation": "full", "source": {"kind": "volume", "volume": "source"}});
    let location = killed_in(&mut daemon, &wish);
    daemon.restart();
    // Its source can not go while it is copied, nor can the copy.
    daemon.delete("/v1/volumes/source").problem(409, "in_use");
    daemon.delete("/v1/volumes/copy").problem(409, "wrong_state");
    assert_eq!(daemon.get(&location).json()["phase"], "Running");
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.delete(&location).status, 202);
    let operation = daemon.over(&location);
    assert_eq!(
        (&operation["phase"], &operation["error"]["code"]),
        (&json!("Cancelled"), &json!("cancelled")),
        "{operation}"
    );
    let copy = daemon.volume("copy");
    assert_eq!(
        (&copy["state"], &copy["reason"]),
        (&json!("failed"), &json!("Cancelled"))
    );
    assert_eq!(daemon.files().len(), 1, "{:?}", daemon.files());
    assert_eq!(daemon.delete("/v1/volumes/copy").status, 204);
    assert_eq!(daemon.delete("/v1/volumes/source").status, 204);
}

#[test]
fn an_upload_is_taken_over_by_the_next_daemon() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let source = filled(&daemon, "source", "raw");
    let bytes = std::fs::read(daemon.file(&source)).unwrap();
    daemon.post(
        "/v1/volumes",
        &json!({"name": "sent", "format": "qcow2", "source": {"kind": "upload"}}),
    );
    let answer = daemon.put("sent", "", &bytes);
    let location = answer.header("location").unwrap().to_owned();
    daemon.crash_and_restart();
    assert_eq!(daemon.over(&location)["phase"], "Succeeded");
    let sent = daemon.volume("sent");
    inspect(&daemon, &sent);
    same(("qcow2", &daemon.file(&sent)), ("raw", &daemon.file(&source)));
    assert_eq!(daemon.files().len(), 2, "{:?}", daemon.files());
}

#[test]
fn an_upload_that_was_verified_is_not_verified_again() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    // Of odd length: its last sector is filled up before it is copied.
    let mut bytes: Vec<u8> = (0..96u32 << 20).map(|at| (at >> 8).to_le_bytes()[0] | 1).collect();
    bytes.truncate(bytes.len() - 100);
    let path = daemon.path("odd.raw");
    std::fs::write(&path, &bytes).unwrap();
    let sum = super::sent::sha256(&path);
    let wish = json!({"name": "sent", "format": "qcow2", "source": {"kind": "upload", "sha256": sum}});
    for _ in 0..20 {
        assert_eq!(daemon.post("/v1/volumes", &wish).status, 201);
        let answer = daemon.put("sent", "", &bytes);
        let location = answer.header("location").unwrap().to_owned();
        let caught = wait_for("the copy", || {
            let operation = daemon.get(&location).json();
            let copies = operation["progress"]["step"] == "copy" && !parts(&daemon).is_empty();
            (copies || operation["phase"] != "Running").then_some(copies)
        });
        if caught {
            daemon.crash_and_restart();
        }
        let operation = daemon.over(&location);
        assert_eq!(operation["phase"], "Succeeded", "{operation}");
        if caught {
            inspect(&daemon, &daemon.volume("sent"));
            assert_eq!(daemon.files().len(), 1, "{:?}", daemon.files());
            return;
        }
        daemon.delete("/v1/volumes/sent");
    }
    panic!("copies are too fast to be killed in");
}

#[test]
fn work_that_ends_one_daemon_after_the_other_is_given_up() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let wish = json!({"name": "sent", "source": {"kind": "upload"}});
    assert_eq!(daemon.post("/v1/volumes", &wish).status, 201);
    let bytes = vec![7; 1 << 20];
    let answer = daemon.put("sent", "", &bytes);
    let uploaded = answer.header("location").unwrap().to_owned();
    assert_eq!(daemon.over(&uploaded)["phase"], "Succeeded");
    let pull = daemon.post("/v1/images", &json!({"reference": "127.0.0.1:1/none:1"}));
    let pulled = pull.header("location").unwrap().to_owned();
    daemon.over(&pulled);
    let volume = daemon.volume("sent");
    let (file, upload) = (daemon.file(&volume), daemon.file(&volume).with_extension("taken"));
    daemon.crash();
    // As after two daemons were cut off in each, the second by what it worked on; then by a third.
    std::fs::rename(&file, &upload).unwrap();
    let id = |location: &str| location.rsplit('/').next().unwrap().to_owned();
    let job = format!(r#"{{"operation":"{}","task":"finish","begun":3}}"#, id(&uploaded));
    let database = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    let changed = [
        (
            "UPDATE volumes SET record = json_set(record, '$.state', 'creating', '$.job', json(?1))",
            job,
        ),
        (
            "UPDATE operations SET phase = '\"Running\"', failure = NULL WHERE id = ?1",
            id(&uploaded),
        ),
        (
            "UPDATE operations SET phase = '\"Running\"', failure = NULL, begun = 3 WHERE id = ?1",
            id(&pulled),
        ),
    ];
    for (update, value) in &changed {
        assert_eq!(database.execute(update, [value]).unwrap(), 1);
    }
    daemon.restart();
    for location in [&uploaded, &pulled] {
        let operation = daemon.over(location);
        assert_eq!(operation["phase"], "Failed", "{operation}");
        let told = operation["error"]["detail"].as_str().unwrap();
        assert!(told.contains("3 daemons in a row ended"), "{told}");
    }
    // What was sent is there, and taken when somebody asks for that again; the volume could be deleted, too.
    let volume = daemon.volume("sent");
    assert_eq!(volume["upload"]["received_bytes"], 1 << 20, "{volume}");
    let again = daemon.put("sent", &format!("Content-Range: bytes */{}\r\n", 1 << 20), b"");
    assert_eq!(daemon.over(again.header("location").unwrap())["phase"], "Succeeded");
    // A third daemon still goes on with it.
    daemon.crash();
    for (update, value) in &changed {
        database.execute(update, [value]).unwrap();
    }
    let twice = "UPDATE volumes SET record = json_set(record, '$.job.begun', 2)";
    assert_eq!(database.execute(twice, []).unwrap(), 1);
    std::fs::rename(&file, &upload).unwrap();
    daemon.restart();
    assert_eq!(daemon.over(&uploaded)["phase"], "Succeeded");
}

#[test]
fn growing_checking_and_removing_are_ended_by_the_next_daemon() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    for name in ["grown", "checked", "gone"] {
        daemon.make(&json!({"name": name, "size": "8Mi", "format": "qcow2"}));
    }
    let resize = daemon.post("/v1/volumes/grown/resize", &json!({"size": "9Mi"}));
    let check = daemon.post("/v1/volumes/checked/check", &json!({"repair": "all"}));
    daemon.crash_and_restart();
    for answer in [resize, check] {
        assert_eq!(daemon.over(answer.header("location").unwrap())["phase"], "Succeeded");
    }
    assert_eq!(inspect(&daemon, &daemon.volume("grown"))["virtual-size"], 9 << 20);
    assert!(daemon.volume("checked")["last_check"].is_object());
    // As a daemon leaves it that is killed between the note and the removal.
    let gone = daemon.volume("gone");
    daemon.crash();
    let database = daemon.path("state/karat.db");
    let update = "UPDATE volumes SET record = replace(record, '\"state\":\"ready\"', '\"state\":\"deleting\"') WHERE name = 'gone'";
    rusqlite::Connection::open(database)
        .unwrap()
        .execute(update, [])
        .unwrap();
    // And files without a record: unfinished ones go, a whole volume stays.
    let [unfinished, whole] = ["part", "raw"]
        .map(|suffix| daemon.path(&format!("state/volumes/00000000-0000-4000-8000-000000000001.{suffix}")));
    std::fs::write(&unfinished, "x").unwrap();
    std::fs::write(&whole, "x").unwrap();
    daemon.restart();
    wait_for("the removal", || {
        (daemon.get("/v1/volumes/gone").status == 404).then_some(())
    });
    assert!(!daemon.file(&gone).exists() && !unfinished.exists() && whole.exists());
    assert_eq!(daemon.files().len(), 3);
}
