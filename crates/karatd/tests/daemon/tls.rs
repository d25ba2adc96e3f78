//! The API over TLS: who may and who may not.

use std::path::Path;

use crate::harness::Daemon;
use crate::launcher::KARAT;
use crate::pair::{Authority, ask, free_port, tls_config};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn only_who_shows_a_certificate_of_the_operators_authority_is_answered() {
    let files = tempfile::tempdir().unwrap();
    let at: &Path = files.path();
    let (own, other) = (Authority::make(), Authority::make());
    own.issue(at, "host", |_| ());
    own.issue(at, "operator", |_| ());
    own.issue(at, "late", |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    own.issue(at, "early", |params| {
        params.not_before = rcgen::date_time_ymd(2099, 1, 1);
    });
    other.issue(at, "stranger", |_| ());
    let port = free_port();
    let daemon = Daemon::start_with(&tls_config(at, "host", port));
    let healthy = ask(at, "host", Some("operator"), port, "GET /healthz").unwrap();
    assert_eq!(status(&healthy), "200", "{healthy}");
    for (name, why) in [
        (None, "no certificate"),
        (Some("stranger"), "a certificate of another authority"),
        (Some("late"), "an expired certificate"),
        (Some("early"), "a certificate that is not valid yet"),
    ] {
        let answer = ask(at, "host", name, port, "GET /healthz");
        assert!(answer.is_err(), "{why} was taken: {answer:?}");
    }
    // The client looks, too: an authority that did not sign the daemon's certificate is of no use.
    let answer = ask(at, "stranger", Some("operator"), port, "GET /healthz");
    assert!(answer.is_err(), "{answer:?}");
    // The socket goes on.
    assert_eq!(daemon.get("/healthz").status, 200);
}

#[test]
fn operators_work_from_afar_and_may_what_root_may() {
    let files = tempfile::tempdir().unwrap();
    let at = files.path();
    let authority = Authority::make();
    for name in ["host", "operator"] {
        authority.issue(at, name, |_| ());
    }
    let port = free_port();
    let daemon = Daemon::start_with(&tls_config(at, "host", port));
    daemon.run("web", "");
    let karat = |words: &[&str]| {
        let file = |name: &str| at.join(name).display().to_string();
        let mut command = std::process::Command::new(&*KARAT);
        command.args(["--url", &format!("https://127.0.0.1:{port}")]);
        command.args([
            "--ca",
            &file("host-ca.pem"),
            "--cert",
            &file("operator.pem"),
            "--key",
            &file("operator.key"),
        ]);
        command.args(words).output().unwrap()
    };
    let list = karat(&["ls"]);
    assert!(list.status.success(), "{list:?}");
    assert!(String::from_utf8_lossy(&list.stdout).contains("web"), "{list:?}");
    assert!(karat(&["stop", "web"]).status.success());
    assert_eq!(daemon.vm("web")["status"]["phase"], "Stopped");
    let moved = karat(&["migrate", "web", "--to", "b"]);
    let told = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert!(
        !moved.status.success() && told.contains("no host \"b\" is configured"),
        "{told}"
    );
}
