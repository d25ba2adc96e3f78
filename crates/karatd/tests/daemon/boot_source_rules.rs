//! Boot sources: what limits them, where their imports go, and the switch for all that are shipped.

use serde_json::{Value, json};

use crate::boot_sources::{DIRECTORIES, condition, edit, put, show, start, sync, until_current, wish};
use crate::harness::{Daemon, wait_for};
use crate::launcher::{fails, says};
use crate::registry::Registry;
use crate::web::{CONFIG, Web};

/// A key whose private half nobody has.
const COSIGN_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZeG/qYRHSnN2Gjx6ulN9Zndjy7Rd\n\
    zHDDr/ny3+FvKoTC1kHYxQaqbYgshR85ayXlH4oKRiMPPevUTDigDFrWhQ==\n\
    -----END PUBLIC KEY-----\n";

/// Events about a boot source, oldest first.
fn events(daemon: &Daemon, source: &str) -> Vec<String> {
    let all = daemon.get("/v1/events").json();
    let all = all["items"].as_array().unwrap();
    let about = all.iter().filter(|event| event["subject"]["id"] == source);
    about
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect()
}

fn until_refused(daemon: &Daemon, name: &str, code: &str) -> Value {
    wait_for("a refusal", || {
        let source = show(daemon, name);
        let failed = condition(&source, "UpToDate")["reason"] == "ImportFailed";
        (failed && source["last_error"]["code"] == code).then_some(source)
    })
}

#[test]
fn a_larger_image_is_refused_also_if_another_has_brought_it_gi_30() {
    let registry = Registry::start();
    registry.push("12", 7);
    let daemon = start(&registry);
    // The store has it: of somebody who may have larger ones.
    put(&daemon, "large", &wish(&registry));
    let large = until_current(&daemon, "large", 1);
    let mut small = wish(&registry);
    (small["managed"], small["max_size"]) = (json!("small12"), json!("32Ki"));
    assert_eq!(put(&daemon, "small", &small).status, 201);
    let source = until_refused(&daemon, "small", "virtual_size_beyond_quota");
    let told = condition(&source, "UpToDate");
    assert_eq!(told["status"], "False", "{source}");
    let text = "the image's disk is 65536 bytes, more than the 32768 allowed";
    assert!(told["message"].as_str().unwrap().contains(text), "{source}");
    let events = events(&daemon, "small").join("\n");
    assert!(events.contains("virtual_size_beyond_quota"), "{events}");
    daemon.get("/v1/images/small12").problem(404, "not_found");
    // What the other has is as it was.
    assert_eq!(until_current(&daemon, "large", 1)["imports"], large["imports"]);
    // It is taken as soon as it may be so large.
    edit(&daemon, "small", &json!({"max_size": "64Ki"}));
    let source = until_current(&daemon, "small", 1);
    assert_eq!(source["imports"][0]["digest"], large["imports"][0]["digest"]);
    let digest = |name: &str| daemon.get(&format!("/v1/images/{name}")).json()["digest"].clone();
    assert_eq!(digest("small12"), digest("debian12"));

    // The first to ask is refused as well, before anything is kept.
    registry.push("13", 8);
    small["source"]["registry"] = json!(registry.reference("13"));
    small["managed"] = json!("other");
    put(&daemon, "other", &small);
    until_refused(&daemon, "other", "virtual_size_beyond_quota");
    let sealed = std::fs::read_dir(daemon.path("state/images/sha256")).unwrap();
    assert_eq!(sealed.count(), 1);
}

#[test]
fn imports_go_to_the_store_of_their_source_and_anew_to_another_gi_31_gi_38() {
    let registry = Registry::start();
    let digest = registry.push("12", 7);
    let daemon = Daemon::start_with(&format!(
        "{}[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n{DIRECTORIES}",
        registry.config()
    ));
    let mut archived = wish(&registry);
    archived["store"] = json!("archive");
    put(&daemon, "debian-12", &archived);
    until_current(&daemon, "debian-12", 1);
    let image = daemon.get("/v1/images/debian12").json();
    assert_eq!(image["stores"], json!(["archive"]), "{image}");

    // The store is changed: it is imported anew, and leaves the old one once it is there.
    let (polls, before) = (registry.polls("12"), image["id"].clone());
    edit(&daemon, "debian-12", &json!({"store": null}));
    let source = wait_for("the import into the default store", || {
        let source = until_current(&daemon, "debian-12", 1);
        (source["imports"][0]["image"] != before).then_some(source)
    });
    assert!(registry.polls("12") > polls);
    assert_eq!(source["imports"][0]["digest"], digest);
    let image = wait_for("the image to leave the archive", || {
        let image = daemon.get("/v1/images/debian12").json();
        (image["stores"] == json!(["default"])).then_some(image)
    });
    daemon
        .get(&format!("/v1/images/{}", before.as_str().unwrap()))
        .problem(404, "not_found");
    let vm = json!({"name": "web", "image": "debian12"});
    assert_eq!(daemon.post("/v1/vms", &vm).status, 201);

    // What a machine was made from stays where it is.
    edit(&daemon, "debian-12", &json!({"store": "archive"}));
    wait_for("the import into the archive", || {
        let stores = daemon.get("/v1/images/debian12").json()["stores"].clone();
        (stores == json!(["default", "archive"])).then_some(())
    });
    assert_eq!(daemon.vm("web")["image_digest"], image["digest"]);
    assert_eq!(daemon.get("/v1/images/fsck").json()["findings"], json!([]));
    // A store that there is not is an error of the source, and mended by naming one that there is.
    edit(&daemon, "debian-12", &json!({"store": "nowhere"}));
    let source = wait_for("the failure", || {
        Some(show(&daemon, "debian-12")).filter(|source| source["failures"] != 0)
    });
    let told = source["last_error"]["message"].as_str().unwrap();
    assert!(!told.is_empty(), "{source}");
    edit(&daemon, "debian-12", &json!({"store": "archive"}));
    assert_eq!(sync(&daemon, "debian-12")["phase"], "Succeeded");
}

#[test]
fn the_switch_for_shipped_sources_stops_them_and_leaves_what_they_brought_gi_17_to_gi_20() {
    let registry = Registry::start();
    registry.push("12", 7);
    let mut daemon = Daemon::start_seeded(&format!("{}{DIRECTORIES}system = true\n", registry.config()), |state| {
        let directory = state.parent().unwrap().join("system.d");
        std::fs::create_dir(&directory).unwrap();
        let text = format!(
            "[[boot_source]]\nname = \"shipped\"\nsource = {{ registry = \"docker://{}\" }}\nschedule = \"@daily\"\n\
             managed = \"shipped12\"\n",
            registry.reference("12")
        );
        std::fs::write(directory.join("a.toml"), text).unwrap();
    });
    until_current(&daemon, "shipped", 1);
    put(&daemon, "own", &wish(&registry));
    until_current(&daemon, "own", 1);
    let id = daemon.get("/v1/images/shipped12").json()["id"].clone();
    let image = format!("/v1/images/{}", id.as_str().unwrap());

    daemon.terminate();
    daemon.reconfigure("system = true", "system = false");
    daemon.restart();
    let source = wait_for("the source to be off", || {
        let source = show(&daemon, "shipped");
        (condition(&source, "UpToDate")["reason"] == "Disabled").then_some(source)
    });
    // No schedule, no alias; what was imported is there, and can be used by its own name.
    assert_eq!(source["next_poll"], Value::Null, "{source}");
    assert_eq!(source["imports"].as_array().unwrap().len(), 1);
    assert_eq!(source["outdated"], false, "nobody is told to mend it (GI-21)");
    daemon.get("/v1/images/shipped12").problem(404, "not_found");
    assert_eq!(daemon.get(&image).json()["state"], "active");
    let refused = daemon.post("/v1/boot-sources/shipped/sync", &json!({}));
    let refused = refused.problem(409, "wrong_state");
    assert!(refused["detail"].as_str().unwrap().contains("boot_sources.system"));
    assert!(fails(&daemon, &["boot-source", "sync", "shipped"]).contains("boot_sources.system"));
    // An administrator's image may have the name meanwhile.
    assert_eq!(daemon.post("/v1/images", &json!({"name": "shipped12"})).status, 201);
    assert_eq!(daemon.get("/v1/images/shipped12").json()["state"], "queued");
    assert_eq!(daemon.delete("/v1/images/shipped12").status, 204);
    // Custom sources go on.
    registry.push("12", 8);
    assert_eq!(sync(&daemon, "own")["phase"], "Succeeded");
    until_current(&daemon, "own", 2);

    daemon.terminate();
    daemon.reconfigure("system = false", "system = true");
    daemon.restart();
    wait_for("the alias to lead to the image again", || {
        (daemon.get("/v1/images/shipped12").json()["id"] == id).then_some(())
    });
    assert_eq!(sync(&daemon, "shipped")["phase"], "Succeeded");
    until_current(&daemon, "shipped", 2);
}

#[test]
fn what_is_demanded_of_a_source_is_proved_of_what_comes_from_it() {
    let (open, signed) = (Registry::start(), Registry::start());
    let digest = open.push("12", 7);
    assert_eq!(signed.push("12", 7), digest);
    let daemon = Daemon::start_seeded(
        &format!(
            "reserved_space = 0\ninsecure_registries = [{:?}, {:?}]\n[trust]\n[[trust.rule]]\nname = \"signed\"\nsources = [\"{}/*\"]\n\
             demand = \"cosign\"\nkeys = [\"@DIR@/cosign.pub\"]\n{DIRECTORIES}",
            open.host, signed.host, signed.host
        ),
        |state| std::fs::write(state.parent().unwrap().join("cosign.pub"), COSIGN_KEY).unwrap(),
    );
    put(&daemon, "open", &wish(&open));
    until_current(&daemon, "open", 1);
    // The same manifest, of a source whose images are to be signed.
    let mut wanted = wish(&signed);
    wanted["managed"] = json!("signed12");
    put(&daemon, "signed", &wanted);
    until_refused(&daemon, "signed", "cosign_unsigned");
    daemon.get("/v1/images/signed12").problem(404, "not_found");
    // Nor by what a source had before it was to be signed.
    edit(
        &daemon,
        "open",
        &json!({"source": {"registry": signed.reference("12")}}),
    );
    until_refused(&daemon, "open", "cosign_unsigned");
    let alias = daemon.get("/v1/images/debian12").json();
    assert_eq!(alias["digest"], daemon.content(&digest), "what was taken before stays");
}

#[test]
fn what_a_server_answers_is_in_the_records_dv_06() {
    let web = Web::start();
    let url = web.put("there.raw", &[1; 4096]).replace("there", "gone");
    let daemon = Daemon::start_with(&format!("{CONFIG}{DIRECTORIES}"));
    let body = json!({"name": "a", "import": {"method": "web-download", "url": url}});
    let done = daemon.begin("/v1/images", &body);
    let status = "expected status code 200 from";
    for text in [
        done["error"]["detail"].as_str().unwrap(),
        daemon.get("/v1/images/a").json()["failure"]["message"]
            .as_str()
            .unwrap(),
        &daemon.get("/v1/events").json().to_string(),
    ] {
        assert!(text.contains(status) && text.contains("got 404"), "{text}");
    }
    let source = json!({"source": {"url": url}, "schedule": "@daily", "managed": "a12"});
    assert_eq!(put(&daemon, "a", &source).status, 201);
    let failed = sync(&daemon, "a");
    assert!(failed.to_string().contains("got 404"), "{failed}");
    let source = wait_for("the failure", || {
        Some(show(&daemon, "a")).filter(|source| condition(source, "UpToDate")["reason"] == "PollFailed")
    });
    assert_eq!(source["last_error"]["code"], "not_found");
    let told = condition(&source, "UpToDate")["message"].as_str().unwrap().to_owned();
    assert!(told.contains(status) && told.contains("got 404"), "{source}");
    assert!(events(&daemon, "a").iter().any(|event| event.contains("got 404")));
}

#[test]
fn every_field_of_a_source_can_be_typed() {
    let daemon = Daemon::start_with(&format!(
        "{CONFIG}[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n{DIRECTORIES}"
    ));
    let set: Vec<_> = "boot-source set a --from https://127.0.0.1:1/a.qcow2 --sums https://127.0.0.1:1/SUMS \
         --sums-signature https://127.0.0.1:1/SUMS.gpg --schedule @daily --jitter 7 --managed a12 --keep 5 --collect never \
         --retention none --store archive --max-size 30Gi"
        .split_whitespace()
        .collect();
    let shown = says(&daemon, &set);
    assert!(shown.contains("https://127.0.0.1:1/SUMS, signed by"), "{shown}");
    let expected = json!({
        "source": {
            "url": "https://127.0.0.1:1/a.qcow2", "checksums": "https://127.0.0.1:1/SUMS",
            "checksums_signature": "https://127.0.0.1:1/SUMS.gpg",
        },
        "schedule": "@daily", "jitter_seconds": 7, "managed": "a12", "imports_to_keep": 5, "garbage_collect": "Never",
        "retention": "None", "store": "archive", "max_size": "30Gi",
    });
    assert_eq!(show(&daemon, "a")["written"], expected);
    says(
        &daemon,
        &["boot-source", "set", "a", "--max-size", "1Gi", "--collect", "outdated"],
    );
    let written = show(&daemon, "a")["written"].clone();
    assert_eq!(written["max_size"], "1Gi");
    assert_eq!(written["garbage_collect"], "Outdated");
    assert_eq!(written["source"], expected["source"], "what is not named stays");
    let told = fails(
        &daemon,
        &["boot-source", "set", "a", "--sums", "https://127.0.0.1:1/SUMS"],
    );
    assert!(told.contains("--from"), "{told}");
}
