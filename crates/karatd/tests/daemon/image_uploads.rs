//! Uploads of images that break off and are gone on with.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Answer, Daemon, wait_for};
use crate::launcher::KARAT;
use crate::registry::digest;

/// How long somebody between two others holds on.
const PATIENCE: Duration = Duration::from_secs(5);

/// A disk in which no two pieces are the same.
fn disk() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let words = (0..100_000).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    });
    // Whole sectors, so that what is sealed is what was sent.
    let mut disk: Vec<u8> = words.collect();
    disk.truncate(disk.len() / 512 * 512);
    disk
}

fn begin(daemon: &Daemon, image: &str, wish: &Value) -> String {
    assert_eq!(daemon.post("/v1/images", &json!({"name": image})).status, 201);
    begun(&daemon.post(&format!("/v1/images/{image}/uploads"), wish))
}

fn begun(answer: &Answer) -> String {
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("upload-offset"), Some("0"));
    answer.header("location").unwrap().to_owned()
}

fn append(daemon: &Daemon, upload: &str, offset: usize, bytes: &[u8]) -> Answer {
    let headers = format!("Upload-Offset: {offset}\r\nContent-Type: application/octet-stream\r\n");
    daemon.send("PATCH", upload, &headers, bytes)
}

/// As HEAD tells it.
fn offset(daemon: &Daemon, upload: &str) -> usize {
    let answer = daemon.request("HEAD", upload, "", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.is_empty());
    answer.header("upload-offset").unwrap().parse().unwrap()
}

/// Promises all that is missing, and hangs up after `sent` bytes.
fn break_off(daemon: &Daemon, upload: &str, offset: usize, disk: &[u8], sent: usize) -> UnixStream {
    let mut stream = daemon.connect();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nHost: karat\r\nUpload-Offset: {offset}\r\nContent-Length: {}\r\n\r\n",
        disk.len() - offset
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&disk[offset..offset + sent]).unwrap();
    stream
}

/// The sealed disk of an image, once it is active.
#[track_caller]
fn sealed(daemon: &Daemon, image: &str) -> Vec<u8> {
    let image = wait_for("the image", || {
        let image = daemon.get(&format!("/v1/images/{image}")).json();
        assert_ne!(image["state"], "failed", "{image}");
        (image["state"] == "active").then_some(image)
    });
    let hex = image["digest"].as_str().unwrap().replace("sha256:", "");
    std::fs::read(daemon.path("state/images/sha256").join(hex).join("disk.raw")).unwrap()
}

/// Waits until so much of an upload was written.
#[track_caller]
fn until_stored(daemon: &Daemon, length: usize) {
    wait_for("what was sent", || {
        let data = std::fs::read_dir(daemon.path("state/uploads")).unwrap();
        let mut data = data.filter_map(|row| row.unwrap().metadata().ok());
        data.any(|data| data.len() == length as u64).then_some(())
    });
}

fn files(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.path("state/uploads")).map_or(0, Iterator::count)
}

#[test]
fn what_breaks_off_anywhere_is_gone_on_with_and_the_digest_is_right() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    let wish = json!({"length": disk.len(), "digest": digest(&disk)});
    let upload = begin(&daemon, "web", &wish);
    let mut at = 0;
    for sent in [0, 1, 511, 4096, 100_001, 7] {
        let stream = break_off(&daemon, &upload, at, &disk, sent);
        stream.shutdown(Shutdown::Both).unwrap();
        at += sent;
        // Whoever asks for the offset stops who sends: what is on its way meanwhile would be dropped.
        until_stored(&daemon, at);
        assert_eq!(offset(&daemon, &upload), at);
        assert_eq!(daemon.get("/v1/images/web").json()["state"], "queued");
    }
    // Elsewhere it does not go on, before as after.
    for wrong in [0, at - 1, at + 1, disk.len()] {
        let refused = append(&daemon, &upload, wrong, &disk[at..]);
        refused.problem(409, "upload_offset");
        assert_eq!(refused.header("upload-offset"), Some(at.to_string().as_str()));
    }
    daemon
        .send("PATCH", &upload, "", &disk[at..])
        .problem(400, "invalid_request");
    assert_eq!(offset(&daemon, &upload), at);
    // In pieces as the sender likes; what is too much is not taken.
    let piece = append(&daemon, &upload, at, &disk[at..at + 1000]);
    assert_eq!(piece.status, 200, "{piece:?}");
    assert_eq!(piece.json()["offset"], at + 1000);
    at += 1000;
    let mut more = disk[at..].to_vec();
    more.push(0);
    append(&daemon, &upload, at, &more).problem(400, "invalid_request");
    let at = offset(&daemon, &upload);
    let done = append(&daemon, &upload, at, &disk[at..]);
    assert_eq!(done.status, 202, "{done:?}");
    assert_eq!(done.header("upload-complete"), Some("?1"));
    let operation = daemon.over(done.header("location").unwrap());
    assert_eq!(operation["phase"], "Succeeded", "{operation}");
    assert!(sealed(&daemon, "web") == disk);
    assert_eq!(files(&daemon), 0);
    daemon.get(&upload).problem(404, "not_found");
}

#[test]
fn a_killed_daemon_keeps_what_came_and_imports_what_is_whole() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    let upload = begin(&daemon, "web", &json!({"length": disk.len()}));
    let mut at = 0;
    for sent in [1, 150_000, 33_333] {
        let stream = break_off(&daemon, &upload, at, &disk, sent);
        until_stored(&daemon, at + sent);
        daemon.crash_and_restart();
        drop(stream);
        at = offset(&daemon, &upload);
    }
    assert_eq!(at, 183_334);
    let shown = daemon.get("/v1/images/web/uploads").json();
    assert_eq!(shown["items"][0]["offset"], at, "{shown}");
    // The last byte comes, and the daemon is killed over the import.
    let done = append(&daemon, &upload, at, &disk[at..]);
    assert_eq!(done.status, 202, "{done:?}");
    daemon.crash_and_restart();
    assert!(sealed(&daemon, "web") == disk);
    wait_for("the upload to go", || (files(&daemon) == 0).then_some(()));
}

#[test]
fn a_second_sender_takes_the_place_of_one_whose_connection_hangs() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    let upload = begin(&daemon, "web", &json!({"length": disk.len()}));
    let hanging = break_off(&daemon, &upload, 0, &disk, 5000);
    until_stored(&daemon, 5000);
    let done = append(&daemon, &upload, 5000, &disk[5000..]);
    assert_eq!(done.status, 202, "{done:?}");
    assert!(sealed(&daemon, "web") == disk);
    drop(hanging);
}

#[test]
fn uploads_have_a_quota_an_age_and_an_end() {
    let mut daemon = Daemon::start_with("reserved_space = 0\n[images.uploads]\nquota = \"100Ki\"\nkept_hours = 1");
    let path = "/v1/images/web/uploads";
    let first = begin(&daemon, "web", &json!({"length": 60 << 10, "label": "mine"}));
    let refused = daemon.post(path, &json!({"length": 60 << 10})).problem(507, "no_space");
    assert!(
        refused["detail"].as_str().unwrap().contains("images.uploads.quota"),
        "{refused}"
    );
    let second = begun(&daemon.post(path, &json!({"length": 40 << 10})));
    assert_eq!(daemon.delete(&second).status, 204);
    daemon.get(&second).problem(404, "not_found");
    for (wish, field) in [
        (json!({"length": 0}), "length"),
        (json!({"length": 1_u64 << 60}), "length"),
        (json!({"length": 1, "label": "a\nb"}), "label"),
        (json!({"length": 1, "digest": "md5:00"}), "options.digests"),
        (json!({"length": 1, "store": "nowhere"}), "options.stores"),
    ] {
        let refused = daemon.post(path, &wish).problem(422, "invalid_spec");
        assert_eq!(refused["errors"][0]["field"], field, "{refused}");
    }
    daemon
        .get("/v1/images/web/uploads/../../x")
        .problem(404, "unknown_path");
    daemon.get("/v1/images/web/uploads/x").problem(404, "not_found");
    // One that nobody goes on with is dropped; another stays.
    assert_eq!(append(&daemon, &first, 0, &[1; 100]).status, 200);
    let third = begun(&daemon.post(path, &json!({"length": 40 << 10})));
    daemon.terminate();
    let old = std::time::SystemTime::now() - Duration::from_secs(3700);
    let id = first.rsplit('/').next().unwrap();
    let data = std::fs::File::options()
        .write(true)
        .open(daemon.path(&format!("state/uploads/{id}.data")))
        .unwrap();
    data.set_modified(old).unwrap();
    daemon.restart();
    wait_for("the upload to be dropped", || {
        (daemon.get(&first).status == 404).then_some(())
    });
    assert_eq!(offset(&daemon, &third), 0);
    // With its image, an upload goes as well.
    assert_eq!(daemon.delete("/v1/images/web").status, 204);
    daemon.get(&third).problem(404, "not_found");
}

#[test]
fn what_is_whole_and_not_what_was_promised_is_refused_and_goes() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    let upload = begin(
        &daemon,
        "web",
        &json!({"length": disk.len(), "digest": digest(b"other")}),
    );
    let done = append(&daemon, &upload, 0, &disk);
    let operation = daemon.over(done.header("location").unwrap());
    assert_eq!(operation["error"]["code"], "digest_mismatch", "{operation}");
    assert_eq!(daemon.get("/v1/images/web").json()["state"], "failed");
    wait_for("the upload to go", || (files(&daemon) == 0).then_some(()));
    let again = begun(&daemon.post("/v1/images/web/uploads", &json!({"length": disk.len()})));
    assert_eq!(append(&daemon, &again, 0, &disk).status, 202);
    assert!(sealed(&daemon, "web") == disk);
    daemon
        .post("/v1/images/web/uploads", &json!({"length": 1}))
        .problem(409, "wrong_state");
}

/// Between the launcher and a daemon: hangs up on the first `cuts` connections that bring more than `after` bytes.
fn cutting(to: PathBuf, at: &Path, after: usize, cuts: usize) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(at).unwrap();
    let left = Arc::new(AtomicUsize::new(cuts));
    let counted = Arc::clone(&left);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (to, left) = (to.clone(), Arc::clone(&counted));
            std::thread::spawn(move || {
                // Either side may leave early, or not be there.
                let _ = pass(stream.unwrap(), &to, after, &left);
            });
        }
    });
    left
}

fn pass(mut from: UnixStream, to: &Path, after: usize, left: &AtomicUsize) -> std::io::Result<()> {
    let mut to = UnixStream::connect(to)?;
    let (mut answers, mut back) = (to.try_clone()?, from.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back); // As above.
        let _ = back.shutdown(Shutdown::Both);
    });
    let (mut passed, mut buffer) = (0, [0; 4096]);
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return to.shutdown(Shutdown::Write);
        }
        passed += length;
        let cut = |left: usize| left.checked_sub(1);
        if passed > after && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut).is_ok() {
            to.shutdown(Shutdown::Both)?;
            return from.shutdown(Shutdown::Both);
        }
        to.write_all(&buffer[..length])?;
    }
}

#[test]
fn the_launcher_goes_on_by_itself_when_connections_break_and_daemons_die() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    std::fs::write(daemon.path("disk.raw"), &disk).unwrap();
    let left = cutting(daemon.path("karat.sock"), &daemon.path("cut.sock"), 60_000, 3);
    let upload = |socket: &str, image: &str| {
        let mut command = Command::new(&*KARAT);
        command
            .arg("--socket")
            .arg(daemon.path(socket))
            .args(["image", "upload", image])
            .arg(daemon.path("disk.raw"))
            .stderr(Stdio::piped());
        command
    };
    let output = upload("cut.sock", "web").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("it broke off"), "{told}");
    assert_eq!(left.load(Ordering::SeqCst), 0);
    assert!(sealed(&daemon, "web") == disk);

    // A command that was ended is gone on with by the next one.
    assert_eq!(daemon.post("/v1/images", &json!({"name": "db"})).status, 201);
    let label = {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(daemon.path("disk.raw")).unwrap();
        format!(
            "{:x}-{:x}-{}.{:09}",
            file.dev(),
            file.ino(),
            file.mtime(),
            file.mtime_nsec()
        )
    };
    let wish = json!({"length": disk.len(), "label": label});
    let begun = begun(&daemon.post("/v1/images/db/uploads", &wish));
    assert_eq!(append(&daemon, &begun, 0, &disk[..200_000]).status, 200);
    let output = upload("karat.sock", "db").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(sealed(&daemon, "db") == disk);
    let all = daemon.get("/v1/images/db/uploads").json();
    assert_eq!(all, json!({"items": []}), "it was that upload, and no other");
}

#[test]
fn the_launcher_waits_for_a_daemon_that_was_killed_while_it_sent() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let disk = disk();
    std::fs::write(daemon.path("disk.raw"), &disk).unwrap();
    // Whoever stands between holds back what comes after this much, until the daemon was killed.
    let (held, go) = holding(daemon.path("karat.sock"), &daemon.path("held.sock"), 100_000);
    let command = Command::new(&*KARAT)
        .arg("--socket")
        .arg(daemon.path("held.sock"))
        .args(["image", "upload", "web"])
        .arg(daemon.path("disk.raw"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    held.recv().unwrap();
    drop(held);
    daemon.crash();
    go.send(()).unwrap();
    daemon.restart();
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(sealed(&daemon, "web") == disk);
}

/// Tells when the first connection has brought more than `after` bytes, and passes nothing on until it is told to.
fn holding(to: PathBuf, at: &Path, after: usize) -> (Receiver<()>, Sender<()>) {
    let listener = UnixListener::bind(at).unwrap();
    let ((tell, told), (go, going)) = (channel(), channel());
    let going = Arc::new(Mutex::new(going));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (to, tell, going) = (to.clone(), tell.clone(), Arc::clone(&going));
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let Ok(mut daemon) = UnixStream::connect(to) else {
                    return;
                };
                let (mut answers, mut back) = (daemon.try_clone().unwrap(), stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut answers, &mut back); // Either side may leave early.
                    let _ = back.shutdown(Shutdown::Both);
                });
                let (mut passed, mut buffer) = (0, [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let before = passed;
                    passed += length;
                    if before <= after && passed > after && tell.send(()).is_ok() {
                        let _ = going.lock().unwrap().recv_timeout(PATIENCE); // Only the first time somebody tells.
                    }
                    if daemon.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = daemon.shutdown(Shutdown::Write); // It may be gone.
            });
        }
    });
    (told, go)
}
