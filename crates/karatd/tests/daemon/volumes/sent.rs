//! Volumes that are uploaded.

use std::io::Write;

use serde_json::json;

use super::{image, inspect, qemu_img, same};
use crate::harness::{Daemon, wait_for};

const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn begin(daemon: &Daemon, name: &str, more: &serde_json::Value) {
    let mut wish = json!({"name": name, "source": {"kind": "upload"}});
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = daemon.post("/v1/volumes", &wish);
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json()["volume"]["reason"], "AwaitingUpload");
}

fn part(first: usize, bytes: &[u8], total: &str) -> String {
    format!("Content-Range: bytes {first}-{}/{total}\r\n", first + bytes.len() - 1)
}

pub(super) fn sha256(path: &std::path::Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn an_image_is_sent_at_once_or_in_pieces_and_becomes_what_it_is() {
    let daemon = Daemon::start_with("reserved_space = 0");
    for format in ["raw", "qcow2"] {
        let source = image(&daemon, &format!("source.{format}"), format, &[]);
        let bytes = std::fs::read(&source).unwrap();
        let sum = sha256(&source);
        let whole = format!("whole-{format}");
        begin(&daemon, &whole, &json!({"source": {"kind": "upload", "sha256": sum}}));
        let answer = daemon.put(&whole, "", &bytes);
        assert_eq!(answer.status, 202, "{answer:?}");
        let operation = daemon.over(answer.header("location").unwrap());
        assert_eq!(
            (&operation["kind"], &operation["phase"]),
            (&json!("volume_upload"), &json!("Succeeded")),
            "{operation}"
        );
        let volume = daemon.volume(&whole);
        assert_eq!(
            (&volume["format"], &volume["size_bytes"]),
            (&json!(format), &json!(8 << 20)),
            "{volume}"
        );
        inspect(&daemon, &volume);
        same((format, &daemon.file(&volume)), (format, &source));

        let pieces = format!("pieces-{format}");
        begin(&daemon, &pieces, &json!({"size": "16Mi"}));
        let middle = bytes.len() / 3;
        let first = daemon.put(&pieces, &part(0, &bytes[..middle], "*"), &bytes[..middle]);
        assert_eq!(
            (first.status, &first.json()["volume"]["upload"]),
            (200, &json!({"received_bytes": middle}))
        );
        let gap = daemon.put(&pieces, &part(middle + 1, &bytes[..7], "*"), &bytes[..7]);
        let told = gap.problem(409, "upload_offset");
        assert!(
            told["detail"]
                .as_str()
                .unwrap()
                .contains(&format!("begins with byte {middle}")),
            "{told}"
        );
        let rest = &bytes[middle..];
        let last = daemon.put(&pieces, &part(middle, rest, &bytes.len().to_string()), rest);
        assert_eq!(daemon.over(last.header("location").unwrap())["phase"], "Succeeded");
        let volume = daemon.volume(&pieces);
        assert_eq!(
            (&volume["size_bytes"], &volume["upload"]),
            (&json!(16 << 20), &serde_json::Value::Null)
        );
        inspect(&daemon, &volume);
        same((format, &daemon.file(&volume)), (format, &source));
    }
    assert!(
        daemon
            .files()
            .iter()
            .all(|name| !name.ends_with("upload") && !name.ends_with("part"))
    );
}

#[test]
fn an_upload_takes_the_form_that_was_asked_for() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let source = image(
        &daemon,
        "source.qcow2",
        "qcow2",
        &["-o", "compression_type=zstd,extended_l2=on"],
    );
    let bytes = std::fs::read(&source).unwrap();
    begin(&daemon, "raw", &json!({"format": "raw"}));
    let answer = daemon.put("raw", "", &bytes);
    assert_eq!(daemon.over(answer.header("location").unwrap())["phase"], "Succeeded");
    let raw = daemon.volume("raw");
    same(("raw", &daemon.file(&raw)), ("qcow2", &source));
    let bytes = std::fs::read(daemon.file(&raw)).unwrap();
    begin(&daemon, "packed", &json!({"format": "qcow2", "compressed": true}));
    let answer = daemon.put("packed", "", &bytes);
    assert_eq!(daemon.over(answer.header("location").unwrap())["phase"], "Succeeded");
    inspect(&daemon, &daemon.volume("packed"));
    same(("qcow2", &daemon.file(&daemon.volume("packed"))), ("qcow2", &source));
    assert_eq!(daemon.files().len(), 2);
}

#[test]
fn what_can_not_be_a_volume_is_refused_by_its_own_code_and_leaves_nothing() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let plain = image(&daemon, "plain.raw", "raw", &[]);
    let backed = daemon.path("backed.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        plain.to_str().unwrap(),
        "-F",
        "raw",
        backed.to_str().unwrap(),
    ]);
    let outside = daemon.path("outside.qcow2");
    let data = format!("data_file={}", daemon.path("data").display());
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &data,
        outside.to_str().unwrap(),
        "1M",
    ]);
    let vmdk = image(&daemon, "other.vmdk", "vmdk", &[]);
    let luks = daemon.path("luks");
    std::fs::write(&luks, [b"LUKS\xba\xbe\x00\x01".as_slice(), &[0; 4096]].concat()).unwrap();
    let broken = daemon.path("broken.qcow2");
    std::fs::write(&broken, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0xff; 4096]].concat()).unwrap();
    for (name, path, more, code) in [
        ("backed", &backed, json!({}), "disk_not_standalone"),
        ("outside", &outside, json!({}), "disk_not_standalone"),
        ("vmdk", &vmdk, json!({}), "disk_refused"),
        ("luks", &luks, json!({}), "disk_refused"),
        ("broken", &broken, json!({}), "disk_refused"),
        ("small", &plain, json!({"size": "1Mi"}), "invalid_spec"),
        ("packed", &plain, json!({"cluster_size": "4Ki"}), "invalid_spec"),
        (
            "sum",
            &plain,
            json!({"source": {"kind": "upload", "sha256": SHA256_OF_NOTHING}}),
            "checksum_mismatch",
        ),
    ] {
        begin(&daemon, name, &more);
        let answer = daemon.put(name, "", &std::fs::read(path).unwrap());
        let operation = daemon.over(answer.header("location").unwrap());
        assert_eq!(operation["error"]["code"], code, "{operation}");
        let volume = daemon.volume(name);
        assert_eq!(
            (&volume["state"], &volume["usage_bytes"]),
            (&json!("failed"), &json!(0)),
            "{volume}"
        );
        assert!(!volume["message"].as_str().unwrap().is_empty());
        daemon.put(name, "", b"x").problem(409, "wrong_state");
        assert_eq!(daemon.delete(&format!("/v1/volumes/{name}")).status, 204);
    }
    assert!(daemon.files().is_empty());
}

#[test]
fn a_sender_that_breaks_off_goes_on_where_it_ended() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let source = image(&daemon, "source.raw", "raw", &[]);
    let bytes = std::fs::read(&source).unwrap();
    begin(&daemon, "data", &json!({}));
    let mut stream = daemon.connect();
    let head = format!(
        "PUT /v1/volumes/data/data HTTP/1.1\r\nHost: karat\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..3 << 20]).unwrap();
    let received = |daemon: &Daemon| daemon.volume("data")["upload"]["received_bytes"].as_u64().unwrap();
    wait_for("the first bytes", || (received(&daemon) > 0).then_some(()));
    // Two at once would mix.
    daemon.put("data", "", b"other").problem(409, "wrong_state");
    daemon.delete("/v1/volumes/data").problem(409, "in_use");
    drop(stream);
    let first = wait_for("the end of the sending", || {
        let answer = daemon.put("data", "Content-Range: bytes 999999999-999999999/*\r\n", b"x");
        (answer.json()["code"] == "upload_offset").then(|| received(&daemon))
    });
    assert!(first > 0 && first <= 3 << 20, "{first}");
    daemon.crash_and_restart();
    assert_eq!(received(&daemon), first, "an upload survives the daemon");
    let first = usize::try_from(first).unwrap();
    let last = daemon.put("data", &part(first, &bytes[first..], "*"), &bytes[first..]);
    assert_eq!((last.status, received(&daemon)), (200, bytes.len() as u64));
    let early = daemon.put("data", "Content-Range: bytes */7\r\n", b"");
    early.problem(409, "upload_offset");
    let answer = daemon.put("data", &format!("Content-Range: bytes */{}\r\n", bytes.len()), b"");
    assert_eq!(daemon.over(answer.header("location").unwrap())["phase"], "Succeeded");
    same(("raw", &daemon.file(&daemon.volume("data"))), ("raw", &source));
}

#[test]
fn wrong_pieces_are_told_apart() {
    let daemon = Daemon::start_with("reserved_space = 0\nimage_max = \"1Mi\"");
    begin(&daemon, "data", &json!({}));
    for range in ["bytes 3-1/4", "pages 0-1/2", "bytes 0-1"] {
        let headers = format!("Content-Range: {range}\r\n");
        daemon.put("data", &headers, b"ab").problem(400, "invalid_request");
    }
    let long = daemon
        .put("data", "Content-Range: bytes 0-1/4\r\n", b"abc")
        .problem(400, "invalid_request");
    assert!(long["detail"].as_str().unwrap().contains("longer"), "{long}");
    let short = daemon.put("data", "Content-Range: bytes 0-3/4\r\n", b"ab");
    assert!(short.status == 400 || short.status == 409, "{short:?}");
    daemon.put("data", "", &vec![1; 2 << 20]).problem(422, "disk_refused");
    daemon.put("none", "", b"x").problem(404, "not_found");
    daemon.make(&super::blank("blank"));
    daemon.put("blank", "", b"x").problem(409, "wrong_state");
}
