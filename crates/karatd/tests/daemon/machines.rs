//! The life of machines.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, signal, wait_for};

fn pid(vm: &Value) -> u32 {
    u32::try_from(vm["status"]["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {vm}"))).unwrap()
}

#[test]
fn a_machine_lives_and_is_deleted_without_a_trace() {
    let daemon = Daemon::start();
    let vm = daemon.run("web", "");
    assert_eq!(vm["status"]["phase"], "Running");
    assert!(vm["status"]["start_to_guest_us"].as_u64().unwrap() >= 100, "{vm}");
    let act = |verb: &str| daemon.post(&format!("/v1/vms/web/{verb}"), &json!({}));
    assert_eq!(act("pause").json()["status"]["phase"], "Paused");
    act("pause").problem(409, "wrong_state");
    act("stop").problem(409, "wrong_state");
    assert_eq!(act("resume").json()["status"]["phase"], "Running");
    assert_eq!(act("reset").json()["status"]["resets"], 1);
    daemon.delete("/v1/vms/web").problem(409, "wrong_state");
    assert_eq!(daemon.begin("/v1/vms/web/stop", &json!({}))["phase"], "Succeeded");
    let stopped = daemon.vm("web");
    assert_eq!(stopped["status"]["phase"], "Stopped");
    assert_eq!(stopped["status"]["reason"], "GuestPowerOff");
    assert_eq!(daemon.delete("/v1/vms/web").status, 204);
    for dir in ["state/vms", "run/vms"] {
        assert_eq!(std::fs::read_dir(daemon.path(dir)).unwrap().count(), 0, "{dir}");
    }
    let reasons: Vec<_> = daemon.get("/v1/events").json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["subject"]["collection"] == "vms")
        .map(|event| event["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons.first().map(String::as_str), Some("Created"));
    assert!(reasons.contains(&"GuestReset".to_owned()), "{reasons:?}");
    assert_eq!(reasons.last().map(String::as_str), Some("Deleted"));
}

#[test]
fn a_guest_that_resets_itself_without_end_does_not_push_out_other_events() {
    let daemon = Daemon::start();
    daemon.run("web", "loop");
    let began = std::time::Instant::now();
    let all = wait_for("the resets", || {
        Some(daemon.vm("web")["status"]["resets"].clone()).filter(|resets| *resets == 400)
    });
    let seconds = began.elapsed().as_secs();
    let events = daemon.get("/v1/events").json();
    let told = events["items"].as_array().unwrap().iter();
    let told: Vec<_> = told.filter(|event| event["reason"] == "GuestReset").collect();
    assert!((1..=3 + seconds).contains(&(told.len() as u64)), "{told:?}");
    let last = told.last().unwrap()["message"].as_str().unwrap();
    assert!(last.contains(&format!("{all} times")), "{last}");
    // Whoever asks for a reset sees it at once.
    for resets in 401..404 {
        let answer = daemon.post("/v1/vms/web/reset", &json!({}));
        assert_eq!(answer.json()["status"]["resets"], resets);
    }
}

#[test]
fn a_machine_is_not_named_like_another_ones_id() {
    let daemon = Daemon::start();
    let web = daemon.create("web", "");
    let answer = daemon.post("/v1/vms", &daemon.spec(web["id"].as_str().unwrap(), ""));
    let problem = answer.problem(422, "invalid_spec");
    assert_eq!(problem["errors"][0]["field"], "name", "{problem}");
}

#[test]
fn of_two_starts_at_once_exactly_one_wins() {
    let daemon = Daemon::start();
    daemon.create("web", "");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| daemon.post("/v1/vms/web/start", &json!({}))))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let won: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    for lost in answers.iter().filter(|answer| answer.status != 202) {
        let told = lost.problem(409, "wrong_state");
        assert!(told["detail"].as_str().unwrap().contains("started already"), "{told}");
    }
    assert_eq!(daemon.over(won[0].header("location").unwrap())["phase"], "Succeeded");
}

#[test]
fn a_killed_machine_fails_with_the_signal_and_its_neighbour_goes_on() {
    let daemon = Daemon::start();
    let (one, two) = (daemon.run("one", ""), daemon.run("two", ""));
    signal(pid(&one), Signal::KILL);
    let failed = daemon.until("one", "Failed");
    assert_eq!(failed["status"]["reason"], "Killed");
    assert!(
        failed["status"]["message"].as_str().unwrap().contains("SIGKILL"),
        "{failed}"
    );
    assert_eq!(daemon.vm("two")["status"], two["status"]);
    let again = daemon.begin("/v1/vms/one/start", &json!({}));
    assert_eq!(again["phase"], "Succeeded", "{again}");
}

#[test]
fn a_start_that_fails_says_why_and_leaves_no_process() {
    let daemon = Daemon::start();
    daemon.create("bad", "refuse");
    let operation = daemon.begin("/v1/vms/bad/start", &json!({}));
    assert_eq!(operation["phase"], "Failed");
    assert_eq!(operation["error"]["code"], "bad_kernel", "{operation}");
    assert_eq!(operation["error"]["detail"], "the kernel is no kernel");
    let vm = daemon.vm("bad");
    assert_eq!(
        (&vm["status"]["phase"], &vm["status"]["reason"]),
        (&json!("Failed"), &json!("StartFailed"))
    );
    assert!(vm["status"]["pid"].is_null());
    daemon.create("dies", "die");
    let operation = daemon.begin("/v1/vms/dies/start", &json!({}));
    assert!(
        operation["error"]["detail"].as_str().unwrap().contains("status 7"),
        "{operation}"
    );
    assert_eq!(std::fs::read_dir(daemon.path("run/vms")).unwrap().count(), 0);
}

#[test]
fn a_deaf_guest_goes_on_after_the_timeout_and_force_ends_it() {
    let daemon = Daemon::start();
    daemon.run("web", "deaf");
    let stop = daemon.begin("/v1/vms/web/stop", &json!({"timeout_seconds": 0}));
    assert_eq!(stop["error"]["code"], "timeout", "{stop}");
    assert_eq!(daemon.vm("web")["status"]["phase"], "Running");
    let answer = daemon.post("/v1/vms/web/stop", &json!({}));
    let operation = answer.header("location").unwrap().to_owned();
    assert_eq!(daemon.delete(&operation).status, 202);
    assert_eq!(daemon.over(&operation)["phase"], "Cancelled");
    let forced = daemon.begin("/v1/vms/web/stop", &json!({"force": true}));
    assert_eq!(forced["phase"], "Succeeded", "{forced}");
    assert_eq!(daemon.vm("web")["status"]["reason"], "Requested");
    daemon.post("/v1/vms/web/stop", &json!({})).problem(409, "wrong_state");
}

#[test]
fn delete_by_force_ends_the_machine_first() {
    let daemon = Daemon::start();
    let vm = daemon.run("web", "deaf");
    assert_eq!(daemon.delete("/v1/vms/web?force=true").status, 204);
    let process = format!("/proc/{}", pid(&vm));
    wait_for("the end of the process", || {
        (!std::path::Path::new(&process).exists()).then_some(())
    });
    daemon.get("/v1/vms/web").problem(404, "not_found");
    assert_eq!(std::fs::read_dir(daemon.path("state/vms")).unwrap().count(), 0);
}

#[test]
fn a_disk_is_written_by_one_machine_at_a_time() {
    let daemon = Daemon::start();
    let disk = daemon.path("state/files/disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    for name in ["one", "two"] {
        let mut spec = daemon.spec(name, "");
        spec["disks"] = json!([{"path": disk}]);
        assert_eq!(daemon.post("/v1/vms", &spec).status, 201);
    }
    assert_eq!(daemon.begin("/v1/vms/one/start", &json!({}))["phase"], "Succeeded");
    let second = daemon.begin("/v1/vms/two/start", &json!({}));
    assert_eq!(second["error"]["code"], "in_use", "{second}");
    assert_eq!(
        daemon.begin("/v1/vms/one/stop", &json!({"force": true}))["phase"],
        "Succeeded"
    );
    assert_eq!(daemon.begin("/v1/vms/two/start", &json!({}))["phase"], "Succeeded");
}

/// Opens a console by hand; the handshake's key and its answer are the example of RFC 6455 §1.3.
fn console(daemon: &Daemon, name: &str) -> BufReader<UnixStream> {
    let mut stream = daemon.connect();
    let head = format!(
        "GET /v1/vms/{name}/console HTTP/1.1\r\nHost: karat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    reader
}

/// Opcode and payload of the next frame; those of a server are not masked.
fn frame(reader: &mut impl Read) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    reader.read_exact(&mut head).unwrap();
    assert!(head[1] < 126, "a short frame");
    let mut payload = vec![0; usize::from(head[1])];
    reader.read_exact(&mut payload).unwrap();
    (head[0] & 15, payload)
}

fn until_printed(reader: &mut impl Read, wanted: &str) {
    let mut printed = String::new();
    while !printed.contains(wanted) {
        let (opcode, payload) = frame(reader);
        assert_eq!(opcode, 2, "binary frames only");
        printed.push_str(&String::from_utf8(payload).unwrap());
    }
}

#[test]
fn consoles_carry_bytes_both_ways_and_close_with_a_reason() {
    let daemon = Daemon::start();
    daemon.run("web", "");
    let (mut first, mut second) = (console(&daemon, "web"), console(&daemon, "web"));
    until_printed(&mut first, "fake machine");
    until_printed(&mut second, "fake machine");
    // FIN and binary, mask bit and length 2, a mask of zeros, "hi".
    first
        .get_mut()
        .write_all(&[0x82, 0x82, 0, 0, 0, 0, b'h', b'i'])
        .unwrap();
    until_printed(&mut first, "HI");
    daemon.begin("/v1/vms/web/stop", &json!({"force": true}));
    let (opcode, reason) = frame(&mut first);
    assert_eq!(opcode, 8);
    assert!(
        String::from_utf8_lossy(&reason[2..]).starts_with("machine web is Stopped"),
        "{reason:?}"
    );
    // Stopped: what the log has, then a close with the reason.
    let log = daemon
        .path("state/vms")
        .join(daemon.vm("web")["id"].as_str().unwrap())
        .join("log/console.log");
    std::fs::write(log, "last words").unwrap();
    let mut late = console(&daemon, "web");
    assert_eq!(frame(&mut late), (2, b"last words".to_vec()));
    assert_eq!(frame(&mut late).0, 8);
    assert_eq!(daemon.get("/v1/vms/web/log?tail_bytes=5").body, b"words");
    daemon.get("/v1/vms/web/console").problem(400, "invalid_request");
    daemon.get("/v1/vms/none/console").problem(404, "not_found");
}

#[test]
fn event_streams_replay_and_go_on() {
    let daemon = Daemon::start();
    daemon.create("one", "");
    let mut stream = daemon.connect();
    let head = "GET /v1/events HTTP/1.1\r\nHost: karat\r\nAccept: text/event-stream\r\nLast-Event-ID: 1\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut next = || loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str::<Value>(data).unwrap();
        }
    };
    let missed = next();
    assert_eq!((&missed["id"], &missed["reason"]), (&json!(2), &json!("Created")));
    daemon.create("two", "");
    let fresh = next();
    assert_eq!((&fresh["id"], &fresh["subject"]["name"]), (&json!(3), &json!("two")));
}
