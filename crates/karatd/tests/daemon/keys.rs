//! Requests that are sent more than once, and figures.

use serde_json::json;

use crate::harness::{Answer, Daemon};

fn post(daemon: &Daemon, key: &str, path: &str, body: &serde_json::Value) -> Answer {
    let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n");
    daemon.request("POST", path, &headers, &body.to_string())
}

#[test]
fn a_request_with_a_key_is_carried_out_once_also_over_a_restart() {
    let mut daemon = Daemon::start_with("reserved_space = 0");
    let wish = json!({"name": "data", "size": "1Mi"});
    let first = post(&daemon, "k-1", "/v1/volumes", &wish);
    assert_eq!(
        (first.status, first.header("idempotency-replayed")),
        (202, None),
        "{first:?}"
    );
    daemon.over(first.header("location").unwrap());
    let same = |again: &Answer| {
        assert_eq!((again.status, again.json()), (202, first.json()));
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    };
    same(&post(&daemon, "k-1", "/v1/volumes", &wish));
    daemon.crash_and_restart();
    same(&post(&daemon, "k-1", "/v1/volumes", &wish));
    let other = post(&daemon, "k-1", "/v1/volumes", &json!({"name": "other", "size": "1Mi"}));
    other.problem(422, "key_reused");
    post(&daemon, "k-1", "/v1/volumes/data/check", &wish).problem(422, "key_reused");
    let created = daemon.get("/v1/events").json();
    let created = created["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["reason"] == "Created")
        .count();
    assert_eq!(created, 1);
    let long = "x".repeat(256);
    for bad in ["", long.as_str()] {
        post(&daemon, bad, "/v1/volumes", &wish).problem(400, "invalid_request");
    }
}

#[test]
fn what_was_refused_may_be_sent_again_under_its_key() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.create("web", "");
    let disk = json!({"volume": "data"});
    post(&daemon, "k", "/v1/vms/web/disks", &disk).problem(422, "invalid_spec");
    let made = daemon.begin("/v1/volumes", &json!({"name": "data", "size": "1Mi"}));
    assert_eq!(made["phase"], "Succeeded");
    let attached = post(&daemon, "k", "/v1/vms/web/disks", &disk);
    assert_eq!(
        (attached.status, attached.header("idempotency-replayed")),
        (200, None),
        "{attached:?}"
    );
    let again = post(&daemon, "k", "/v1/vms/web/disks", &disk);
    assert_eq!(
        (again.status, again.header("etag")),
        (200, attached.header("etag")),
        "{again:?}"
    );
}

#[test]
fn what_there_was_no_room_for_may_be_sent_again_under_its_key() {
    let daemon = Daemon::start_with("reserved_space = \"900Ti\"");
    let wish = json!({"name": "data", "size": "1Mi", "preallocation": "full"});
    for _ in 0..2 {
        post(&daemon, "k", "/v1/volumes", &wish).problem(507, "no_space");
    }
}

#[test]
fn of_many_with_one_key_at_once_one_is_carried_out() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| post(&daemon, "k", "/v1/volumes", &json!({"name": "data", "size": "1Mi"}))))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let fresh = answers
        .iter()
        .filter(|one| one.status == 202 && one.header("idempotency-replayed").is_none());
    assert_eq!(fresh.count(), 1, "{answers:?}");
    for other in answers.iter().filter(|one| one.status != 202) {
        other.problem(409, "wrong_state");
    }
}

#[test]
fn figures_are_in_the_format_of_prometheus() {
    let daemon = Daemon::start_with("reserved_space = 0");
    daemon.run("web", "");
    daemon.create("db", "");
    daemon.begin("/v1/volumes", &json!({"name": "data", "size": "1Mi"}));
    let answer = daemon.get("/metrics");
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        "karat_vms{phase=\"Running\"} 1",
        "karat_vms{phase=\"Stopped\"} 1",
        "karat_vms{phase=\"Failed\"} 0",
        "karat_volumes{state=\"ready\"} 1",
        "karat_volume_size_bytes{volume=\"data\"} 1048576",
        "karat_volume_usage_bytes{volume=\"data\"} 0",
        "karat_operations{kind=\"volume_create\",phase=\"Succeeded\"} 1",
        "karat_images 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let family = name.split('{').next().unwrap();
        assert!(
            value.parse::<f64>().is_ok() && text.contains(&format!("# TYPE {family} ")),
            "{line}"
        );
    }
}
