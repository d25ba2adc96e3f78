//! Images of slow stores: machines are made from copies, which come and go.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};

use crate::alerts::metrics;
use crate::harness::{Daemon, wait_for};
use crate::launcher::says;

fn config(more: &str) -> String {
    format!(
        "reserved_space = 0\n[images.cache]\n{more}\n[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\ncached = true\n"
    )
}

/// Imports a disk of noise of its own into the slow store alone.
fn image(daemon: &Daemon, name: &str, bytes: u64) {
    let mut noise = Vec::new();
    let source = std::fs::File::open("/dev/urandom").unwrap();
    source.take(bytes).read_to_end(&mut noise).unwrap();
    // No table of partitions, which would claim what is not there.
    noise[..4096].fill(1);
    let file = daemon.path("state/files/disk.raw");
    std::fs::write(&file, noise).unwrap();
    assert_eq!(daemon.post("/v1/images", &json!({"name": name})).status, 201);
    let from = json!({"method": "file", "path": file, "options": {"stores": ["archive"]}});
    let done = daemon.begin(&format!("/v1/images/{name}/import"), &from);
    assert_eq!(done["phase"], "Succeeded", "{done}");
}

fn make(daemon: &Daemon, machine: &str, image: &str) -> u16 {
    let mut spec = daemon.spec(machine, "");
    spec["image"] = json!(image);
    daemon.post("/v1/vms", &spec).status
}

/// Makes a machine and removes it.
fn use_once(daemon: &Daemon, image: &str) {
    assert_eq!(make(daemon, "once", image), 201);
    assert_eq!(daemon.delete("/v1/vms/once").status, 204);
}

fn cache(daemon: &Daemon) -> Value {
    daemon.get("/v1/image-cache").json()
}

/// Names of the images in the cache, with their states.
fn listed(daemon: &Daemon) -> Vec<(String, String)> {
    let items = cache(daemon)["items"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut listed: Vec<_> = items
        .iter()
        .map(|item| (text(&item["images"][0]), text(&item["state"])))
        .collect();
    listed.sort();
    listed
}

fn cached(names: &[&str]) -> Vec<(String, String)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), "cached".to_owned()))
        .collect()
}

fn put(daemon: &Daemon, image: &str) -> u16 {
    daemon
        .request("PUT", &format!("/v1/image-cache/{image}"), "", "")
        .status
}

fn has(daemon: &Daemon, line: &str) {
    let look = metrics(daemon);
    assert!(look.lines().any(|found| found == line), "{line}: {look}");
}

#[test]
fn copies_are_made_on_first_use_and_the_one_not_used_for_longest_goes() {
    let daemon = Daemon::start_with(&config("max_size = \"2560Ki\""));
    for name in ["a", "b", "c"] {
        image(&daemon, name, 1 << 20);
    }
    assert_eq!(listed(&daemon), []);
    use_once(&daemon, "a");
    use_once(&daemon, "b");
    use_once(&daemon, "a");
    assert_eq!(listed(&daemon), cached(&["a", "b"]));
    has(&daemon, "karat_image_cache_hits_total 1");
    has(&daemon, "karat_image_cache_misses_total 2");
    // There is room for two: b was not used for longest.
    use_once(&daemon, "c");
    assert_eq!(listed(&daemon), cached(&["a", "c"]));
    has(&daemon, "karat_image_cache_evictions_total 1");
    assert_eq!(
        std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count(),
        2
    );
    // One that is in use stays, though it was not used for longest.
    assert_eq!(make(&daemon, "stays", "a"), 201);
    use_once(&daemon, "c");
    use_once(&daemon, "b");
    assert_eq!(listed(&daemon), cached(&["a", "b"]));
    let refused = daemon.delete("/v1/image-cache/a").problem(409, "in_use");
    assert!(refused["detail"].as_str().unwrap().contains("stays"), "{refused}");
    assert_eq!(cache(&daemon)["items"][0]["used_by"], json!(["stays"]));
    // More than fits beside what is used comes all the same, and goes when it is not used any more.
    assert_eq!(make(&daemon, "too", "b"), 201);
    assert_eq!(make(&daemon, "many", "c"), 201);
    assert_eq!(listed(&daemon), cached(&["a", "b", "c"]));
    assert!(cache(&daemon)["used_bytes"].as_u64() > cache(&daemon)["max_bytes"].as_u64());
    for name in ["stays", "too", "many"] {
        assert_eq!(daemon.delete(&format!("/v1/vms/{name}")).status, 204);
    }
    let left = says(&daemon, &["image", "cache", "prune"]);
    assert!(left.contains("of 2.5 MiB"), "{left}");
    assert_eq!(listed(&daemon), cached(&["b", "c"]));
    // With the image its copy goes.
    assert_eq!(daemon.delete("/v1/images/b").status, 204);
    assert_eq!(listed(&daemon), cached(&["c"]));
    // What somebody copies is there to stay.
    let copied = daemon.begin("/v1/images/c/import", &json!({"method": "copy", "stores": ["default"]}));
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    assert_eq!(listed(&daemon), []);
    assert_eq!(
        daemon.get("/v1/images/c").json()["stores"],
        json!(["default", "archive"])
    );
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
}

#[test]
fn what_is_asked_for_is_fetched_at_the_next_look_at_the_queue() {
    let daemon = Daemon::start_with(&config("max_size = \"2560Ki\"\nprefetch_interval_seconds = 2"));
    for name in ["a", "b", "c"] {
        image(&daemon, name, 1 << 20);
    }
    says(&daemon, &["image", "cache", "add", "a", "b"]);
    assert_eq!(listed(&daemon).len(), 2);
    wait_for("both copies", || (listed(&daemon) == cached(&["a", "b"])).then_some(()));
    has(&daemon, "karat_image_cache_misses_total 0");
    use_once(&daemon, "a");
    has(&daemon, "karat_image_cache_hits_total 1");
    let list = says(&daemon, &["image", "cache", "ls"]);
    assert!(
        list.lines()
            .any(|line| line.starts_with("b ") && line.contains("cached")),
        "{list}"
    );
    // What does not fit beside what is used waits, and says so.
    assert_eq!(make(&daemon, "one", "a"), 201);
    assert_eq!(make(&daemon, "two", "b"), 201);
    assert_eq!(put(&daemon, "c"), 200);
    let waiting = wait_for("the problem", || {
        let items = cache(&daemon)["items"].as_array().unwrap().clone();
        items
            .into_iter()
            .find(|item| item["images"][0] == "c" && item["problem"].is_string())
    });
    assert_eq!(waiting["state"], "queued", "{waiting}");
    assert_eq!(daemon.delete("/v1/image-cache/c").status, 204);
    assert_eq!(listed(&daemon), cached(&["a", "b"]));
    for name in ["one", "two"] {
        assert_eq!(daemon.delete(&format!("/v1/vms/{name}")).status, 204);
    }
    says(&daemon, &["image", "cache", "rm", "a"]);
    assert_eq!(listed(&daemon), cached(&["b"]));
    says(&daemon, &["image", "cache", "rm", "--all-cached"]);
    assert_eq!(listed(&daemon), []);
    assert_eq!(daemon.get("/v1/images/a").json()["stores"], json!(["archive"]));
    daemon.delete("/v1/image-cache/a").problem(404, "not_found");
    // There is nothing to cache of what is at hand.
    let copied = daemon.begin("/v1/images/c/import", &json!({"method": "copy", "stores": ["default"]}));
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    assert_eq!(put(&daemon, "c"), 409);
    assert_eq!(put(&daemon, "nobody"), 404);
}

#[test]
fn a_daemon_killed_while_it_copies_leaves_nothing_that_is_not_known() {
    let mut daemon = Daemon::start_with(&config("prefetch_interval_seconds = 1"));
    for name in ["asked", "used"] {
        image(&daemon, name, 24 << 20);
    }
    for round in 0..8 {
        assert_eq!(put(&daemon, "asked"), 200);
        std::thread::scope(|scope| {
            let asking = daemon.connect();
            let mut spec = daemon.spec("vm", "");
            spec["image"] = json!("used");
            scope.spawn(move || {
                use std::io::Write;
                let (mut stream, body) = (asking, spec.to_string());
                let head = format!(
                    "POST /v1/vms HTTP/1.1\r\nHost: karat\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                // The daemon may be gone before it reads.
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.read(&mut [0; 1]);
            });
            std::thread::sleep(Duration::from_millis(13 * round * round));
            daemon.crash();
        });
        daemon.restart();
        let known = wait_for("the cache to be settled", || {
            let known = listed(&daemon);
            let settled = known.iter().all(|(name, state)| name == "asked" || state == "cached");
            settled.then_some(known)
        });
        // What is in the default store is in the list, and the other way round.
        let sealed = std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count();
        let there = known.iter().filter(|(_, state)| state == "cached").count();
        assert!(sealed >= there, "round {round}: {known:?}, {sealed}");
        drop(daemon.delete("/v1/vms/vm"));
        wait_for("the copy that was asked for", || {
            listed(&daemon)
                .contains(&("asked".to_owned(), "cached".to_owned()))
                .then_some(())
        });
        assert_eq!(
            daemon.get("/v1/images/fsck").json(),
            json!({"findings": []}),
            "round {round}"
        );
        let sealed = std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count();
        assert_eq!(sealed, listed(&daemon).len(), "round {round}");
        assert_eq!(
            std::fs::read_dir(daemon.path("state/tmp")).unwrap().count(),
            0,
            "round {round}"
        );
        let verified = daemon.begin("/v1/images/asked/verify", &json!({}));
        assert_eq!(verified["phase"], "Succeeded", "{verified}");
        assert_eq!(
            daemon.request("DELETE", "/v1/image-cache?state=cached", "", "").status,
            204
        );
    }
}
