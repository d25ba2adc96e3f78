//! Stores that do not answer, and records of where images are that can not be written or are not true any more.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, wait_for};
use crate::images::{DIGEST, seed};
use crate::stores::{ARCHIVE, import, sealed, store, until};

/// An image whose kernel is as slow as somebody makes it.
const SLOW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

/// A file that is opened when somebody opens it to write: until then whoever reads it waits, as for a server that is away.
fn hanging(path: &std::path::Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

fn fsck(daemon: &Daemon) -> Vec<Value> {
    let found = daemon.get("/v1/images/fsck").json();
    found["findings"].as_array().unwrap().clone()
}

#[test]
fn a_store_that_does_not_answer_does_not_keep_the_daemon_from_its_start() {
    let daemon = Daemon::start_seeded(ARCHIVE, |state| {
        seed(state);
        hanging(&state.with_file_name("archive").join("store.id"));
        std::fs::create_dir_all(state.join("stores")).unwrap();
        std::fs::write(state.join("stores/archive.id"), "known\n").unwrap();
    });
    let away = store(&daemon, "archive");
    assert_eq!(away["state"], "unavailable", "{away}");
    assert!(away["problem"].as_str().unwrap().contains("does not answer"), "{away}");
    let failed = import(&daemon, "web", 1, &json!(["archive"]));
    assert_eq!(failed["error"]["code"], "store_unavailable", "{failed}");
    // All else goes on.
    let made = daemon.post("/v1/vms", &json!({"name": "one", "image": DIGEST}));
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(daemon.delete("/v1/vms/one").status, 204);
    assert_eq!(import(&daemon, "own", 2, &json!(["default"]))["phase"], "Succeeded");
    assert_eq!(daemon.delete("/v1/images/own").status, 204);
    assert_eq!(fsck(&daemon), [Value::Null; 0]);
    std::fs::write(daemon.path("archive/store.id"), "known\n").unwrap();
    until(&daemon, "archive", "ready");
    assert_eq!(import(&daemon, "web", 1, &json!(["archive"]))["phase"], "Succeeded");
    assert_eq!(sealed(&daemon.path("archive")), 1);
}

#[test]
fn images_can_be_removed_while_a_slow_store_is_copied_from() {
    let config = format!("{ARCHIVE}cached = true\n");
    let daemon = Daemon::start_seeded(&config, |state| {
        seed(state);
        let sealed = state.with_file_name("archive").join("images/sha256");
        let directory = sealed.join(SLOW.trim_start_matches("sha256:"));
        hanging(&directory.join("kernel"));
        std::fs::write(directory.join("disk.raw"), vec![9; 4096]).unwrap();
        let manifest = json!({"version": 1, "image": {
            "digest": SLOW, "index_digest": null, "reference": "q.io/demo/slow:1",
            "disk": {"source_path": "", "source_format": "raw", "source_bytes": 4096, "virtual_bytes": 4096},
            "kernel": {"source_path": "boot/vmlinuz", "size_bytes": 0},
            "initrd": null, "cmdline": null, "imported_at_s": 1_790_000_000,
        }});
        std::fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
    });
    let kernel = daemon.path("archive/images/sha256");
    let kernel = kernel.join(SLOW.trim_start_matches("sha256:")).join("kernel");
    let held = daemon.path("held");
    std::fs::hard_link(&kernel, &held).unwrap();
    let wish = json!({"name": "web", "image": SLOW});
    std::thread::scope(|scope| {
        let made = scope.spawn(|| daemon.post("/v1/vms", &wish));
        wait_for("the copy", || {
            let cache = daemon.get("/v1/image-cache").json();
            (cache["items"][0]["state"] == "fetching").then_some(())
        });
        let began = Instant::now();
        let removed = daemon.delete(&format!("/v1/images/{DIGEST}"));
        assert_eq!(removed.status, 204, "{removed:?}");
        // The image itself goes, too, and what came of it.
        let removed = daemon.delete(&format!("/v1/images/{SLOW}"));
        assert_eq!(removed.status, 204, "{removed:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(!kernel.exists());
        assert_eq!(sealed(&daemon.path("state")), 0);
        // Whoever waits is told when the store answers.
        std::fs::write(held, "").unwrap();
        made.join().unwrap().problem(404, "not_found");
    });
    let cache = daemon.get("/v1/image-cache").json();
    assert_eq!(cache["items"], json!([]), "{cache}");
    assert_eq!(sealed(&daemon.path("state")), 0);
    assert_eq!(fsck(&daemon), [Value::Null; 0]);
}

#[test]
fn the_end_of_a_copy_is_written_down_as_soon_as_that_can_be_done() {
    let daemon = Daemon::start_with(ARCHIVE);
    assert_eq!(import(&daemon, "web", 1, &json!(["default"]))["phase"], "Succeeded");
    let records = rusqlite::Connection::open(daemon.path("state/karat.db")).unwrap();
    records.busy_timeout(Duration::from_secs(10)).unwrap();
    // As a disk that the copy itself has filled.
    let full = "CREATE TRIGGER full BEFORE UPDATE ON images \
        WHEN json_array_length(NEW.record, '$.placement.importing_to_stores') = 0 BEGIN SELECT RAISE(ABORT, 'full'); END";
    records.execute_batch(full).unwrap();
    let copy = json!({"method": "copy", "stores": ["archive"]});
    let answer = daemon.post("/v1/images/web/import", &copy);
    assert_eq!(answer.status, 202, "{answer:?}");
    let operation = answer.header("location").unwrap().to_owned();
    wait_for("the bytes", || (sealed(&daemon.path("archive")) == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(daemon.get(&operation).json()["phase"], "Running");
    records.execute_batch("DROP TRIGGER full").unwrap();
    let done = daemon.over(&operation);
    assert_eq!(done["phase"], "Succeeded", "{done}");
    let web = daemon.get("/v1/images/web").json();
    assert_eq!(
        (&web["stores"], &web["importing_to_stores"]),
        (&json!(["default", "archive"]), &Value::Null),
        "{web}"
    );
}

#[test]
fn an_image_is_missing_where_its_record_has_it_whatever_other_stores_have() {
    let daemon = Daemon::start_with(ARCHIVE);
    for (name, fill) in [("web", 1), ("old", 2)] {
        let done = import(&daemon, name, fill, &json!(["default", "archive"]));
        assert_eq!(done["phase"], "Succeeded", "{done}");
    }
    assert_eq!(fsck(&daemon), [Value::Null; 0]);
    // What somebody takes from a store is not missing there.
    assert_eq!(daemon.delete("/v1/images/old/stores/archive").status, 204);
    assert_eq!(fsck(&daemon), [Value::Null; 0]);
    let digest = daemon.get("/v1/images/web").json()["digest"].clone();
    let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
    let gone = daemon.path("archive/images/sha256").join(hex);
    std::fs::set_permissions(&gone, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::remove_dir_all(gone).unwrap();
    // Nor is what was sent lost when it can not be read what it is.
    let upload = "00000000-0000-4000-8000-000000000001";
    std::fs::create_dir_all(daemon.path("state/uploads")).unwrap();
    std::fs::write(daemon.path("state/uploads").join(format!("{upload}.json")), "{").unwrap();
    let found = fsck(&daemon);
    let told: Vec<_> = found
        .iter()
        .map(|finding| (&finding["store"], &finding["code"], &finding["subject"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!("archive"), &json!("missing"), &digest),
            (&json!("default"), &json!("upload_unreadable"), &json!(upload)),
        ],
        "{found:?}"
    );
}
