//! Data comes into records: from the web, from files, from clients, from object stores, from other stores.

use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, wait_for};
use crate::registry::{Registry, digest};
use crate::web::{CONFIG, Web, object_store};

/// A disk with something in it.
fn disk(fill: u8) -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    disk[1000..70_000].fill(fill);
    disk
}

/// Bytes as a program packs them; nothing where it is missing.
fn packed(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new(program)
        .args(["-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        skipped(program);
        return None;
    };
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writing = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped(program: &str) {
    eprintln!("skipped: {program} is not installed");
}

fn web_import(url: &str, options: &Value) -> Value {
    json!({"method": "web-download", "url": url, "options": options})
}

fn record(daemon: &Daemon, name: &str) {
    assert_eq!(daemon.post("/v1/images", &json!({"name": name})).status, 201);
}

fn import(daemon: &Daemon, name: &str, from: &Value) -> Value {
    daemon.begin(&format!("/v1/images/{name}/import"), from)
}

#[track_caller]
fn imported(daemon: &Daemon, name: &str, from: &Value) -> Value {
    record(daemon, name);
    let done = import(daemon, name, from);
    assert_eq!(done["phase"], "Succeeded", "{done}");
    image(daemon, name)
}

fn image(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/v1/images/{name}")).json()
}

fn upload(daemon: &Daemon, name: &str, query: &str, bytes: &[u8]) -> Answer {
    daemon.send("PUT", &format!("/v1/images/{name}/data{query}"), "", bytes)
}

/// Sends and waits for what comes of it.
#[track_caller]
fn uploaded(daemon: &Daemon, name: &str, query: &str, bytes: &[u8]) -> Value {
    let answer = upload(daemon, name, query, bytes);
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    daemon.over(answer.header("location").unwrap())
}

/// Sends what is refused, while it comes or when it was looked at; returns the code of the refusal.
#[track_caller]
fn upload_refused(daemon: &Daemon, name: &str, query: &str, bytes: &[u8]) -> String {
    let answer = upload(daemon, name, query, bytes);
    let refused = match answer.status {
        202 => daemon.over(answer.header("location").unwrap())["error"].clone(),
        _ => answer.json(),
    };
    assert_eq!(image(daemon, name)["state"], "failed", "{refused}");
    refused["code"]
        .as_str()
        .unwrap_or_else(|| panic!("{refused}"))
        .to_owned()
}

/// The bytes that were sealed.
fn sealed(daemon: &Daemon, image: &Value) -> Vec<u8> {
    let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    std::fs::read(daemon.path("state/images/sha256").join(hex).join("disk.raw")).unwrap()
}

fn nothing_is_left(daemon: &Daemon) {
    for part in ["tmp", "partial"] {
        let left = std::fs::read_dir(daemon.path("state").join(part)).unwrap().count();
        assert_eq!(left, 0, "{part}");
    }
}

#[test]
fn a_web_download_is_unpacked_compared_and_sealed() {
    let web = Web::start();
    let daemon = Daemon::start_with(CONFIG);
    let disk = disk(1);
    let url = web.put("disk.raw", &disk);
    let pinned = json!({"digests": [digest(&disk)]});
    let plain = imported(&daemon, "plain", &web_import(&url, &pinned));
    assert_eq!(plain["digest"], digest(&disk));
    assert_eq!(
        (&plain["state"], &plain["source_format"]),
        (&json!("active"), &json!("raw"))
    );
    assert!(sealed(&daemon, &plain) == disk);

    // What servers send packed is compared as it is sent or as it is inside, and is the same image.
    let Some(gzip) = packed("gzip", &disk) else { return };
    let url = web.put("disk.raw.gz", &gzip);
    let sums = format!("{}  disk.raw.gz\n", digest(&gzip).trim_start_matches("sha256:"));
    let sums = json!({"sums": {"url": web.put("SHA256SUMS", sums.as_bytes())}});
    let unpacked = imported(&daemon, "unpacked", &web_import(&url, &sums));
    assert_eq!(unpacked["digest"], plain["digest"]);

    // Other bytes than were asked for leave nothing.
    let wrong = json!({"digests": [digest(b"other")]});
    record(&daemon, "wrong");
    let failed = import(&daemon, "wrong", &web_import(&url, &wrong));
    assert_eq!(failed["error"]["code"], "digest_mismatch", "{failed}");
    let failed = image(&daemon, "wrong");
    assert_eq!(
        (&failed["state"], &failed["failure"]["code"]),
        (&json!("failed"), &json!("digest_mismatch")),
        "{failed}"
    );
    let missing = import(&daemon, "wrong", &web_import(&format!("{url}.missing"), &json!({})));
    assert_eq!(missing["error"]["code"], "image_unknown", "{missing}");
    nothing_is_left(&daemon);
    assert_eq!(
        std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count(),
        1
    );
}

#[test]
fn what_the_policy_denies_is_told_before_anything_is_asked() {
    let web = Web::start();
    let url = web.put("disk.raw", &disk(1));
    let daemon = Daemon::start();
    let wish = json!({"name": "web", "import": web_import(&url, &json!({}))});
    let refused = daemon.post("/v1/images", &wish).problem(422, "invalid_spec");
    assert_eq!(refused["errors"][0]["field"], "url", "{refused}");
    assert!(refused.to_string().contains("denied_port"), "{refused}");
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
    assert_eq!(web.gets(), 0);
    // Another way than the operator allows.
    let daemon = Daemon::start_with("[images]\nmethods = [\"registry\", \"file\"]");
    let info = daemon.get("/v1/images/import-info").json();
    assert_eq!(info["methods"], json!(["registry", "file"]), "{info}");
    let refused = daemon.post("/v1/images", &wish).problem(422, "invalid_spec");
    assert_eq!(refused["errors"][0]["field"], "method", "{refused}");
    record(&daemon, "web");
    upload(&daemon, "web", "", b"x").problem(422, "invalid_spec");
    assert_eq!(image(&daemon, "web")["state"], "queued");
}

#[test]
fn files_are_imported_from_where_it_is_allowed() {
    let daemon = Daemon::start();
    let file = |name: &str| json!({"method": "file", "path": daemon.path(name)});
    std::fs::write(daemon.path("state/files/disk.raw"), disk(2)).unwrap();
    let from_file = imported(&daemon, "web", &file("state/files/disk.raw"));
    assert_eq!(from_file["digest"], digest(&disk(2)));
    std::fs::write(daemon.path("outside.raw"), disk(3)).unwrap();
    std::os::unix::fs::symlink(daemon.path("outside.raw"), daemon.path("state/files/link.raw")).unwrap();
    record(&daemon, "other");
    for outside in ["outside.raw", "state/files/link.raw"] {
        let failed = import(&daemon, "other", &file(outside));
        assert_eq!(failed["error"]["code"], "image_refused", "{outside}: {failed}");
        assert_eq!(image(&daemon, "other")["failure"]["code"], "denied_path");
    }
    let missing = import(&daemon, "other", &file("state/files/no.raw"));
    assert_eq!(missing["error"]["code"], "image_unknown", "{missing}");
}

#[test]
fn what_clients_send_is_imported_as_it_comes_packed_or_not() {
    let daemon = Daemon::start();
    let disk = disk(4);
    for program in ["cat", "gzip", "xz", "zstd", "bzip2"] {
        let sent = if program == "cat" {
            Some(disk.clone())
        } else {
            packed(program, &disk)
        };
        let Some(sent) = sent else { continue };
        record(&daemon, program);
        let query = format!("?digest={}", digest(&sent).replace(':', "%3A"));
        let done = uploaded(&daemon, program, &query, &sent);
        assert_eq!(
            (&done["phase"], &done["kind"], &done["result"]),
            (&json!("Succeeded"), &json!("image_import"), &json!(digest(&disk))),
            "{program}: {done}"
        );
    }
    assert!(sealed(&daemon, &image(&daemon, "cat")) == disk);
    upload(&daemon, "cat", "", &disk).problem(409, "wrong_state");
    upload(&daemon, "nobody", "", &disk).problem(404, "not_found");
    record(&daemon, "wrong");
    let wrong = format!("?digest={}", digest(b"other").replace(':', "%3A"));
    assert_eq!(upload_refused(&daemon, "wrong", &wrong, &disk), "digest_mismatch");
    assert_eq!(upload_refused(&daemon, "wrong", "", b""), "image_refused");
    nothing_is_left(&daemon);
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing_and_can_be_sent_again() {
    let mut daemon = Daemon::start();
    let disk = disk(5);
    record(&daemon, "web");
    let begin = |daemon: &Daemon| {
        let mut stream = daemon.connect();
        let head = "PUT /v1/images/web/data HTTP/1.1\r\nHost: karat\r\nContent-Length: 262144\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&disk[..100_000]).unwrap();
        wait_for("the import", || {
            (image(daemon, "web")["state"] == "importing").then_some(())
        });
        stream
    };
    let stream = begin(&daemon);
    stream.shutdown(Shutdown::Both).unwrap();
    let failed = wait_for("the failure", || {
        Some(image(&daemon, "web")).filter(|image| image["state"] == "failed")
    });
    assert_eq!(failed["failure"]["code"], "upload_broke_off", "{failed}");
    nothing_is_left(&daemon);
    // The next daemon can not go on with what it is not sent.
    let stream = begin(&daemon);
    let operation = image(&daemon, "web")["operation"].as_str().unwrap().to_owned();
    daemon.crash_and_restart();
    drop(stream);
    let operation = daemon.over(&format!("/v1/operations/{operation}"));
    assert_ne!(operation["phase"], "Succeeded", "{operation}");
    assert_eq!(image(&daemon, "web")["failure"]["code"], "upload_lost");
    nothing_is_left(&daemon);
    assert_eq!(uploaded(&daemon, "web", "", &disk)["phase"], "Succeeded");
    assert!(sealed(&daemon, &image(&daemon, "web")) == disk);
}

#[test]
fn an_upload_that_is_no_image_is_refused_while_it_comes() {
    let daemon = Daemon::start();
    record(&daemon, "web");
    // A qcow2 that reads what it likes of the host (QEMU docs/interop/qcow2.txt): version 2, backing file at 72, 11 bytes.
    let mut bad = vec![0; 4 << 20];
    bad[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    bad[8..16].copy_from_slice(&72_u64.to_be_bytes());
    bad[16..20].copy_from_slice(&11_u32.to_be_bytes());
    bad[20..24].copy_from_slice(&16_u32.to_be_bytes());
    bad[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    bad[72..83].copy_from_slice(b"/etc/shadow");
    assert_eq!(upload_refused(&daemon, "web", "", &bad), "image_refused");
    let failed = image(&daemon, "web");
    assert_eq!(failed["failure"]["code"], "backing_file", "{failed}");
    nothing_is_left(&daemon);
}

#[test]
fn objects_are_imported_with_the_key_of_the_configuration() {
    let bucket = tempfile::tempdir().unwrap();
    std::fs::create_dir(bucket.path().join("golden")).unwrap();
    std::fs::write(bucket.path().join("golden/disk.raw"), disk(6)).unwrap();
    let port = object_store(bucket.path(), "reader", "a very secret key");
    let server = |name: &str, secret: &str| {
        let endpoint = format!("http://127.0.0.1:{port}");
        let file = format!("@DIR@/state/{secret}");
        format!(
            "[[images.s3]]\nname = {name:?}\nendpoint = {endpoint:?}\nkey_id = \"reader\"\nsecret_file = {file:?}\n"
        )
    };
    let config = [server("own", "right"), server("other", "wrong")].concat();
    let seed = |state: &Path| {
        std::fs::write(state.join("right"), "a very secret key\n").unwrap();
        std::fs::write(state.join("wrong"), "guessed\n").unwrap();
    };
    let daemon = Daemon::start_seeded(&config, seed);
    let info = daemon.get("/v1/images/import-info").json();
    assert_eq!(info["s3_servers"], json!(["own", "other"]), "{info}");
    assert!(info["methods"].as_array().unwrap().contains(&json!("s3")), "{info}");
    let object = json!({"method": "s3", "url": "s3://golden/disk.raw"});
    assert_eq!(imported(&daemon, "web", &object)["digest"], digest(&disk(6)));
    record(&daemon, "other");
    let with_other = json!({"method": "s3", "url": "s3://golden/disk.raw", "server": "other"});
    let failed = import(&daemon, "other", &with_other);
    assert_eq!(failed["error"]["code"], "image_unknown", "{failed}");
    let nobody = json!({"method": "s3", "url": "s3://golden/disk.raw", "server": "nobody"});
    daemon
        .post("/v1/images/other/import", &nobody)
        .problem(422, "invalid_spec");
}

#[test]
fn images_are_in_several_stores_and_machines_made_from_any() {
    let config = "reserved_space = 0\n[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n\
         [[images.store]]\nname = \"gone\"\npath = \"@DIR@/mount\"\nmust_be_mounted = true\n";
    let registry = Registry::start();
    let manifest = registry.push("1", 7);
    let daemon = Daemon::start_with(&format!("insecure_registries = [{:?}]\n{config}", registry.host));
    let info = daemon.get("/v1/images/import-info").json();
    let named: Vec<_> = info["stores"]
        .as_array()
        .unwrap()
        .iter()
        .map(|store| &store["name"])
        .collect();
    assert_eq!(named, ["default", "archive", "gone"], "{info}");
    assert!(
        info["stores"][2]["problem"].as_str().unwrap().contains("mount point"),
        "{info}"
    );
    let archived =
        json!({"method": "registry", "reference": registry.reference("1"), "options": {"stores": ["archive"]}});
    let web = imported(&daemon, "web", &archived);
    assert_eq!(web["stores"], json!(["archive"]), "{web}");
    assert_eq!(web["digest"], daemon.content(&manifest));
    let vm = json!({"name": "a", "image": "web"});
    let made = daemon.post("/v1/vms", &vm);
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["status"]["root_disk"]["store"], "archive");
    assert_eq!(daemon.delete("/v1/vms/a").status, 204);
    daemon
        .delete("/v1/images/web/stores/archive")
        .problem(409, "wrong_state");
    let to = |stores: Value| json!({"method": "copy", "stores": stores});
    daemon
        .post("/v1/images/web/import", &to(json!(["nowhere"])))
        .problem(422, "invalid_spec");
    let copied = import(&daemon, "web", &to(json!(["default"])));
    assert_eq!(
        (&copied["phase"], &copied["kind"]),
        (&json!("Succeeded"), &json!("image_copy")),
        "{copied}"
    );
    assert_eq!(image(&daemon, "web")["stores"], json!(["default", "archive"]));
    assert_eq!(daemon.post("/v1/vms", &vm).status, 201);
    daemon.delete("/v1/images/web/stores/default").problem(409, "in_use");
    assert_eq!(daemon.delete("/v1/images/web/stores/archive").status, 204);
    assert_eq!(image(&daemon, "web")["stores"], json!(["default"]));
    // It goes from all stores at once.
    import(&daemon, "web", &to(json!(["archive"])));
    assert_eq!(daemon.delete("/v1/vms/a").status, 204);
    assert_eq!(daemon.delete("/v1/images/web").status, 204);
    for store in ["state", "archive"] {
        let sealed = std::fs::read_dir(daemon.path(store).join("images/sha256")).unwrap();
        assert_eq!(sealed.count(), 0, "{store}");
    }
}

#[test]
fn what_has_to_be_proved_is_demanded_of_every_way_in() {
    let registry = Registry::start();
    let manifest = registry.push("1", 7);
    let config = format!(
        "{}[trust]\nunmatched = \"digest\"\n[[trust.rule]]\nname = \"nobody\"\nsources = [\"file:///*\"]\ndemand = \"refuse\"\n",
        registry.config()
    );
    let daemon = Daemon::start_with(&config);
    let pull = |reference: String| daemon.begin("/v1/images", &json!({"reference": reference}));
    let refused = pull(registry.reference("1"));
    assert_eq!(refused["error"]["code"], "image_refused", "{refused}");
    assert_eq!(registry.blobs_asked(), 0, "nothing is fetched that will be refused");
    let pinned = format!("{}@{manifest}", registry.reference("1"));
    assert_eq!(pull(pinned)["phase"], "Succeeded");
    record(&daemon, "sent");
    assert_eq!(upload_refused(&daemon, "sent", "", &disk(8)), "image_refused");
    assert_eq!(image(&daemon, "sent")["failure"]["code"], "proof_missing");
    std::fs::write(daemon.path("state/files/disk.raw"), disk(8)).unwrap();
    let file = json!({"method": "file", "path": daemon.path("state/files/disk.raw"), "options": {"digests": [digest(&disk(8))]}});
    let done = import(&daemon, "sent", &file);
    assert_eq!(image(&daemon, "sent")["failure"]["code"], "source_refused", "{done}");
}

#[test]
fn a_web_server_is_a_boot_source_whose_versions_its_validators_tell_apart() {
    let web = Web::start();
    let config = format!(
        "{CONFIG}[boot_sources]\nsystem_directory = \"@DIR@/system.d\"\ncustom_directory = \"@DIR@/custom.d\"\n"
    );
    let daemon = Daemon::start_with(&config);
    let url = web.put("disk.raw", &disk(1));
    let wish = json!({"source": {"url": url}, "schedule": "@daily", "managed": "latest"});
    let put = daemon.request(
        "PUT",
        "/v1/boot-sources/web",
        "Content-Type: application/json\r\n",
        &wish.to_string(),
    );
    assert_eq!(put.status, 201, "{put:?}");
    let sync = || daemon.begin("/v1/boot-sources/web/sync", &json!({}));
    assert_eq!(sync()["phase"], "Succeeded");
    assert_eq!(image(&daemon, "latest")["digest"], digest(&disk(1)));
    let gets = web.gets();
    assert_eq!(sync()["phase"], "Succeeded");
    assert_eq!(web.gets(), gets, "what is the same is not fetched again");
    web.put("disk.raw", &disk(2));
    assert_eq!(sync()["phase"], "Succeeded");
    assert_eq!(image(&daemon, "latest")["digest"], digest(&disk(2)));
}

#[test]
fn records_and_stores_are_found_to_agree_or_not() {
    let daemon = Daemon::start();
    record(&daemon, "web");
    uploaded(&daemon, "web", "", &disk(1));
    let fsck = || daemon.get("/v1/images/fsck").json();
    assert_eq!(fsck(), json!({"findings": []}));
    let hex = image(&daemon, "web")["digest"].as_str().unwrap().replace("sha256:", "");
    let images = daemon.path("state/images/sha256");
    std::fs::create_dir(images.join("what")).unwrap();
    std::fs::write(daemon.path("state/tmp/left"), "x").unwrap();
    let codes = || -> Vec<String> {
        let found = fsck()["findings"].as_array().unwrap().clone();
        let mut codes: Vec<_> = found
            .iter()
            .map(|one| one["code"].as_str().unwrap().to_owned())
            .collect();
        codes.sort();
        codes
    };
    assert_eq!(codes(), ["leftover", "stray"]);
    std::fs::rename(images.join(&hex), daemon.path("hidden")).unwrap();
    assert_eq!(codes(), ["leftover", "missing", "stray"]);
    daemon
        .post("/v1/images", &json!({"name": "fsck"}))
        .problem(422, "invalid_spec");
}

#[test]
fn a_store_that_can_not_take_an_image_spoils_it_only_where_that_is_not_allowed() {
    let config = "reserved_space = 0\n[[images.store]]\nname = \"small\"\npath = \"@DIR@/small\"\nquota = \"4Ki\"\n";
    let daemon = Daemon::start_with(config);
    std::fs::write(daemon.path("state/files/disk.raw"), disk(9)).unwrap();
    let wanted = |allow: bool| {
        json!({"method": "file", "path": daemon.path("state/files/disk.raw"),
            "options": {"stores": ["default", "small"], "allow_failure": allow}})
    };
    record(&daemon, "web");
    let failed = import(&daemon, "web", &wanted(false));
    assert_eq!(failed["error"]["code"], "no_space", "{failed}");
    assert_eq!(image(&daemon, "web")["failure"]["code"], "store_quota");
    assert_eq!(
        std::fs::read_dir(daemon.path("state/images/sha256")).unwrap().count(),
        0
    );
    let done = import(&daemon, "web", &wanted(true));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    assert_eq!(image(&daemon, "web")["stores"], json!(["default"]));
    let events = daemon.get("/v1/events").json().to_string();
    assert!(events.contains("did not get into store small"), "{events}");
}
