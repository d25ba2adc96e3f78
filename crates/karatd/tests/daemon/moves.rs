//! Moves of machines between two daemons.

use serde_json::{Value, json};

use crate::harness::wait_for;
use crate::launcher::{fails, says};
use crate::pair::{Pair, migrate, nothing_left, over, vms};

#[test]
fn files_whose_record_was_lost_survive_an_arrival_of_that_machine() {
    let pair = Pair::start();
    let id = pair.run("web")["id"].as_str().unwrap().to_owned();
    let lost = pair.b.path(&format!("state/vms/{id}"));
    std::fs::create_dir(&lost).unwrap();
    std::fs::write(lost.join("root.qcow2"), "years of work").unwrap();
    let moved = over(&pair.a, &migrate(&pair.a, "web", "b"));
    assert_eq!(moved["phase"], "Failed", "{moved}");
    let told = moved["error"]["detail"].as_str().unwrap();
    assert!(told.contains("no record knows"), "{moved}");
    assert_eq!(std::fs::read(lost.join("root.qcow2")).unwrap(), b"years of work");
    pair.a.until("web", "Running");
}

#[test]
fn a_machine_goes_there_and_comes_back() {
    let pair = Pair::start();
    let before = pair.run("web");
    assert_eq!(
        before["conditions"],
        json!([{"type": "LiveMigratable", "status": true}])
    );
    let there = migrate(&pair.a, "web", "b");
    let moved = over(&pair.a, &there);
    assert_eq!(moved["phase"], "Succeeded", "{moved}");
    assert_eq!(
        (&moved["method"], &moved["target"]),
        (&json!("LiveMigration"), &json!("b"))
    );
    assert_eq!(moved["vm_id"], before["id"]);
    assert!(
        moved["target_address"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{moved}"
    );
    assert_eq!(moved["options"]["progress_timeout_seconds"], 150);
    assert_eq!(moved["options"]["bandwidth_per_migration"], "0");
    assert_eq!(moved["options"]["allow_post_copy"], false);
    assert_eq!(moved["progress"]["total_bytes"], 64 << 20);
    nothing_left(&pair.a);
    let here = pair.b.until("web", "Running");
    assert_eq!((&here["id"], &here["spec"]), (&before["id"], &before["spec"]));
    assert_ne!(here["status"]["pid"], before["status"]["pid"]);
    let incoming = pair.b.get("/v1/incoming-migrations").json();
    assert_eq!(incoming["items"][0]["phase"], "Succeeded", "{incoming}");
    // It is an ordinary machine there, and one that once departed may come back and go again.
    assert_eq!(
        pair.b.post("/v1/vms/web/pause", &json!({})).json()["status"]["phase"],
        "Paused"
    );
    assert_eq!(
        pair.b.post("/v1/vms/web/resume", &json!({})).json()["status"]["phase"],
        "Running"
    );
    assert_eq!(over(&pair.b, &migrate(&pair.b, "web", "a"))["phase"], "Succeeded");
    nothing_left(&pair.b);
    pair.a.until("web", "Running");
    assert_eq!(over(&pair.a, &migrate(&pair.a, "web", "b"))["phase"], "Succeeded");
    pair.b.until("web", "Running");
    let metrics = pair.a.get("/metrics");
    let metrics = String::from_utf8_lossy(&metrics.body);
    assert!(metrics.contains("migrations_succeeded_total 2"), "{metrics}");
}

#[test]
fn all_reasons_against_a_move_are_told_at_once_and_nothing_is_left() {
    let pair = Pair::start_with("", "plain = true\n");
    let disk = pair.shared.path().join("files/disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    pair.run_spec("web", &json!({"disks": [{"path": disk}]}));
    let other = pair.b.post("/v1/vms", &pair.b_spec("web"));
    assert_eq!(other.status, 201, "{}", String::from_utf8_lossy(&other.body));
    // Another file under the same name: what two hosts without shared storage have.
    std::fs::rename(&disk, disk.with_extension("old")).unwrap();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    std::fs::rename(disk.with_extension("old"), pair.shared.path().join("kept")).unwrap();
    let failed = over(&pair.a, &migrate(&pair.a, "web", "b"));
    assert_eq!(failed["phase"], "Failed", "{failed}");
    let fields: Vec<_> = failed["error"]["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    for field in ["vm.name", "certificate"] {
        assert!(fields.contains(&field), "{field} is missing: {failed}");
    }
    assert_eq!(pair.a.vm("web")["status"]["phase"], "Running");
    assert_eq!(vms(&pair.b).len(), 1);
    assert_eq!(pair.b.vm("web")["status"]["phase"], "Stopped");
    assert_eq!(std::fs::read_dir(pair.b.path("run/vms")).map_or(0, Iterator::count), 0);
}

#[test]
fn a_disk_that_both_hosts_have_is_locked_where_the_machine_is() {
    let pair = Pair::start();
    let disk = pair.shared.path().join("files/disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    pair.run_spec("web", &json!({"disks": [{"path": disk}]}));
    assert_eq!(over(&pair.a, &migrate(&pair.a, "web", "b"))["phase"], "Succeeded");
    nothing_left(&pair.a);
    let file = std::fs::File::open(&disk).unwrap();
    let taken = || rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err();
    wait_for("the lock", || {
        let is_taken = taken();
        if !is_taken {
            rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        }
        is_taken.then_some(())
    });
}

#[test]
fn what_can_not_be_moved_is_refused_before_anything_is_done() {
    let pair = Pair::start();
    let volume = pair.a.post("/v1/volumes", &json!({"name": "data", "size": "1Mi"}));
    assert_eq!(volume.status, 202);
    wait_for("the volume", || {
        (pair.a.get("/v1/volumes/data").json()["state"] == "ready").then_some(())
    });
    pair.run_spec("stuck", &json!({"disks": [{"volume": "data"}]}));
    let condition = |name: &str| pair.a.vm(name)["conditions"][0].clone();
    assert_eq!(condition("stuck")["reason"], "VolumeNotShared");
    let begin = |body: Value| pair.a.post("/v1/migrations", &body);
    let refused = begin(json!({"vm": "stuck", "target": "b"})).problem(409, "wrong_state");
    assert_eq!(refused["errors"][0]["field"], "disks[0]", "{refused}");
    begin(json!({"vm": "stuck", "target": "c"})).problem(422, "invalid_spec");
    begin(json!({"vm": "nobody", "target": "b"})).problem(404, "not_found");
    let wrong = json!({"vm": "stuck", "target": "b", "options": {"streams": 17, "progress_timeout_seconds": 0}});
    let wrong = begin(wrong).problem(422, "invalid_spec");
    assert_eq!(wrong["errors"].as_array().unwrap().len(), 2, "{wrong}");
    begin(json!({"vm": "stuck", "target": "b", "speed": 1})).problem(400, "invalid_request");
    pair.a.begin("/v1/vms/stuck/stop", &json!({"force": true}));
    begin(json!({"vm": "stuck", "target": "b"})).problem(409, "wrong_state");
    assert_eq!(pair.a.post("/v1/vms", &pair.b_spec("still")).status, 201);
    assert_eq!(
        (&condition("still")["status"], &condition("still")["reason"]),
        (&json!(false), &json!("NotRunning"))
    );
    assert_eq!(pair.a.get("/v1/migrations").json(), json!({"items": []}));
}

#[test]
fn a_move_is_cancelled_at_any_step_before_the_machine_has_left() {
    let pair = Pair::start();
    let before = pair.run("web");
    for step in ["hello", "copy"] {
        pair.hold(step);
        let there = migrate(&pair.a, "web", "b");
        pair.at(step);
        pair.a
            .post("/v1/migrations", &json!({"vm": "web", "target": "b"}))
            .problem(409, "in_use");
        assert_eq!(pair.b.vm("web")["status"]["phase"], "Arriving");
        pair.b.post("/v1/vms/web/start", &json!({})).problem(409, "wrong_state");
        assert_eq!(pair.a.delete(&there).status, 202);
        let ended = over(&pair.a, &there);
        assert_eq!(ended["phase"], "Cancelled", "{ended}");
        nothing_left(&pair.b);
        let here = pair.a.vm("web");
        assert_eq!(
            (&here["status"]["phase"], &here["status"]["pid"]),
            (&json!("Running"), &before["status"]["pid"])
        );
        pair.let_go(step);
        pair.forget();
    }
    // Too late.
    pair.hold("start");
    let there = migrate(&pair.a, "web", "b");
    pair.at("start");
    pair.a.delete(&there).problem(409, "wrong_state");
    pair.a
        .post("/v1/vms/web/stop", &json!({"force": true}))
        .problem(409, "wrong_state");
    pair.let_go("start");
    assert_eq!(over(&pair.a, &there)["phase"], "Succeeded");
    assert_eq!(pair.a.delete(&there).status, 204);
    pair.a.get(&there).problem(404, "not_found");
    pair.b.until("web", "Running");
    nothing_left(&pair.a);
}

#[test]
fn moves_wait_for_their_turn_and_the_last_five_are_remembered() {
    let pair = Pair::start_with("parallel_outbound = 1\n", "");
    pair.run("web");
    pair.run("db");
    pair.hold("copy");
    let first = migrate(&pair.a, "web", "b");
    pair.at("copy");
    let second = migrate(&pair.a, "db", "b");
    assert_eq!(pair.a.get(&first).json()["phase"], "Running");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(pair.a.get(&second).json()["phase"], "Pending");
    let metrics = pair.a.get("/metrics");
    let metrics = String::from_utf8_lossy(&metrics.body);
    for line in [
        "migrations{phase=\"Pending\"} 1",
        "migrations{phase=\"Running\"} 1",
        "vm_migration_data_processed_bytes{vm=\"web\"} 33554432",
        "vm_migration_data_remaining_bytes{vm=\"web\"} 33554432",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert_eq!(pair.a.delete(&second).status, 202);
    assert_eq!(over(&pair.a, &second)["phase"], "Cancelled");
    for _ in 0..6 {
        let again = migrate(&pair.a, "db", "b");
        assert_eq!(pair.a.delete(&again).status, 202);
        assert_eq!(over(&pair.a, &again)["phase"], "Cancelled");
    }
    let list = pair.a.get("/v1/migrations").json();
    let of = |vm: &str| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["vm"] == vm)
            .count()
    };
    assert_eq!((of("db"), of("web")), (5, 1), "{list}");
    pair.let_go("copy");
    assert_eq!(over(&pair.a, &first)["phase"], "Succeeded");
}

#[test]
fn machines_are_moved_as_people_type_it() {
    let pair = Pair::start();
    pair.run("web");
    let wrong = fails(&pair.a, &["migrate", "web", "--to", "nowhere"]);
    assert!(wrong.contains("nowhere") && wrong.contains("there are: b"), "{wrong}");
    says(
        &pair.a,
        &["migrate", "web", "--to", "b", "--bandwidth", "64Mi", "--streams", "2"],
    );
    let list = says(&pair.a, &["migration", "ls"]);
    assert!(list.contains("Succeeded") && list.contains("web"), "{list}");
    let id = list
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let shown = says(&pair.a, &["migration", "show", &id]);
    assert!(shown.contains("LiveMigration"), "{shown}");
    let incoming = says(&pair.b, &["migration", "incoming"]);
    assert!(incoming.contains("Succeeded"), "{incoming}");
    says(&pair.a, &["migration", "cancel", &id]);
    assert_eq!(says(&pair.a, &["migration", "ls"]).lines().count(), 1);
    assert_eq!(pair.b.vm("web")["status"]["phase"], "Running");
}
