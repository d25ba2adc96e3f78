//! Images of disks, signed with a key of the host.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::images::seed;
use crate::snapshots::{ROOM, image, machine, of_vm, taken};

const UUID: &str = "7f2b1bd5-0f0b-4f83-a2a1-6a5d3c0c7a10";

fn openssl(dir: &Path, line: &str) -> bool {
    let made = Command::new("openssl").current_dir(dir).args(line.split(' ')).output();
    made.is_ok_and(|output| output.status.success())
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped() {
    eprintln!("skipped: no openssl here (apt install openssl)");
}

/// A key and its certificate, unless there is no openssl here.
fn keys() -> Option<tempfile::TempDir> {
    if !openssl(Path::new("/"), "version") {
        skipped();
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let make = |line: &str| assert!(openssl(dir.path(), line), "{line}");
    make("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out own.key");
    make(&format!(
        "req -x509 -new -key own.key -subj /CN=host -days 2 -out {UUID}.pem"
    ));
    Some(dir)
}

#[test]
fn an_image_of_a_disk_is_signed_and_another_host_takes_it_by_its_signature_s17_17() {
    let Some(keys) = keys() else { return };
    let trust = format!(
        "{ROOM}\n[trust]\ncertificates = {:?}\n[[trust.rule]]\nname = \"uploads\"\nsources = [\"upload://\"]\ndemand = \"x509\"\n",
        keys.path()
    );
    let signing = format!(
        "{trust}[trust.snapshots]\nkey = {:?}\ncertificate = \"{UUID}\"\n",
        keys.path().join("own.key")
    );
    let daemon = Daemon::start_seeded(&signing, seed);
    machine(&daemon, "");
    let gold = taken(&daemon, "gold", &of_vm("web"));
    let told = &gold["properties"];
    assert_eq!(told["img_signature_certificate_uuid"], UUID, "{gold}");
    let names = ["", "_hash_method", "_key_type", "_certificate_uuid"].map(|end| format!("img_signature{end}"));
    let signed: Value = names.iter().map(|name| (name.clone(), told[name].clone())).collect();

    let hex = gold["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let sealed = daemon.path("state/images/sha256").join(hex).join("disk.qcow2");
    let mut bytes = std::fs::read(sealed).unwrap();
    let other = Daemon::start_with(&trust);
    let send = |name: &str, properties: &Value, bytes: &[u8]| {
        let made = other.post("/v1/images", &json!({"name": name, "properties": properties}));
        assert_eq!(made.status, 201, "{made:?}");
        other.send("PUT", &format!("/v1/images/{name}/data"), "", bytes)
    };
    let came = |name: &str, properties: &Value, bytes: &[u8]| {
        other.over(send(name, properties, bytes).header("location").unwrap());
        image(&other, name)
    };
    let gold = came("gold", &signed, &bytes);
    assert_eq!(gold["state"], "active", "{gold}");
    let unsigned = send("unsigned", &json!({}), &bytes).problem(422, "image_refused");
    assert!(unsigned.to_string().contains("img_signature"), "{unsigned}");
    *bytes.last_mut().unwrap() ^= 1;
    let forged = came("forged", &signed, &bytes);
    assert_eq!(forged["failure"]["code"], "x509_mismatch", "{forged}");
    other
        .post("/v1/vms", &json!({"name": "a", "image": "forged"}))
        .problem(409, "wrong_state");
}
