//! Downloads from nginx: plain, with ranges over a wire that breaks, with TLS and with passwords.

use std::time::Duration;

use image_sources::{Agent, Identity, Login, WebSource};

use crate::certificates::Authority;
use crate::cutter::Cutter;
use crate::fetched::{agent, content, drain, failure, fetch, options, web};
use crate::nginx::Nginx;

/// An agent that trusts `authority`.
fn trusting(authority: &Authority) -> Agent {
    let mut options = options();
    options.authorities_pem = Some(authority.pem().into_bytes());
    Agent::new(options).unwrap()
}

#[tokio::test]
async fn a_file_comes_whole() {
    let Some(nginx) = Nginx::start() else { return };
    let content = content(3_000_001);
    nginx.put("image", &content);
    nginx.put("empty", b"");
    let agent = agent();
    let source = web(&agent, &format!("http://mirror.test:{}/image", nginx.port));
    let opened = source.open_at(0, None).await.unwrap();
    assert_eq!(opened.length_bytes(), Some(3_000_001));
    assert!(opened.identity().etag.is_some() && opened.identity().modified.is_some());
    let (identity, progress) = (opened.identity().clone(), opened.progress());
    let (all, result) = drain(opened).await;
    result.unwrap();
    assert!(all == content);
    assert_eq!(
        (progress.fetched_bytes(), progress.total_bytes()),
        (3_000_001, Some(3_000_001))
    );
    assert_eq!(progress.retries(), 0);
    assert_eq!(source.probe().await.unwrap(), identity);
    let empty = web(&agent, &format!("http://mirror.test:{}/empty", nginx.port));
    assert_eq!(fetch(&empty).await.unwrap(), b"");
    let missing = web(&agent, &format!("http://mirror.test:{}/missing", nginx.port));
    assert_eq!(failure(&missing).await.0, "not_found");
}

#[tokio::test]
async fn a_wire_that_breaks_costs_no_byte_twice() {
    let Some(nginx) = Nginx::start() else { return };
    let content = content(20_000_000);
    nginx.put("image", &content);
    let wire = Cutter::start(nginx.port, vec![1_000_000, 100, 5_000_000, 70_000, 3_000_000]).await;
    let source = web(&agent(), &format!("http://mirror.test:{}/image", wire.port));
    let opened = source.open_at(0, None).await.unwrap();
    let progress = opened.progress();
    let (all, result) = drain(opened).await;
    result.unwrap();
    assert!(all == content);
    assert_eq!(wire.connections(), 6);
    assert_eq!(progress.fetched_bytes(), 20_000_000);
    assert_eq!(progress.retries(), 5);
    // A head is under 1000 bytes: each range begins where the wire broke, less that. The head that was cut within 100 bytes is
    // asked for again, at the same byte.
    let log = wait_for_log(&nginx, 6).await;
    let starts: Vec<u64> = log.iter().filter_map(|line| range_start(line)).collect();
    assert_eq!(starts.len(), 5, "{log:?}");
    let expected = [1_000_000, 1_000_000, 6_000_000, 6_070_000, 9_070_000];
    for (start, most) in starts.iter().zip(expected) {
        assert!(*start <= most && *start + 5 * 1000 > most, "{starts:?}");
    }
    assert_eq!(starts[0], starts[1]);
    assert!(log.iter().skip(1).all(|line| line.contains(" 206 ")), "{log:?}");
}

fn range_start(line: &str) -> Option<u64> {
    let (_, range) = line.split_once("[bytes=")?;
    range.split_once("-]")?.0.parse().ok()
}

/// The log is written when nginx notices the end of a connection.
async fn wait_for_log(nginx: &Nginx, lines: usize) -> Vec<String> {
    for _ in 0..500 {
        let log = nginx.log();
        if log.len() >= lines {
            return log;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    nginx.log()
}

#[tokio::test]
async fn a_fetch_goes_on_another_day() {
    let Some(nginx) = Nginx::start() else { return };
    let bytes = content(2_000_000);
    nginx.put("image", &bytes);
    let source = web(&agent(), &format!("http://mirror.test:{}/image", nginx.port));
    let mut opened = source.open_at(0, None).await.unwrap();
    let first = opened.next_piece().await.unwrap().unwrap();
    let kept = serde_json::to_string(opened.identity()).unwrap();
    drop(opened);
    let identity: Identity = serde_json::from_str(&kept).unwrap();
    let opened = source.open_at(first.len() as u64, Some(&identity)).await.unwrap();
    let progress = opened.progress();
    let (rest, result) = drain(opened).await;
    result.unwrap();
    assert!([&first[..], &rest].concat() == bytes);
    assert_eq!(progress.fetched_bytes(), 2_000_000 - first.len() as u64);
    assert_eq!(progress.total_bytes(), Some(2_000_000));
    let (rest, result) = drain(source.open_at(2_000_000, Some(&identity)).await.unwrap()).await;
    assert!(rest.is_empty() && result.is_ok());
    assert_eq!(
        source.open_at(2_000_001, None).await.unwrap_err().code(),
        "wrong_length"
    );

    // nginx makes its ETag of date and length.
    nginx.put("image", &content(1_999_999));
    assert_eq!(
        source.open_at(7, Some(&identity)).await.unwrap_err().code(),
        "source_changed"
    );
    assert_eq!(
        source.open_at(0, Some(&identity)).await.unwrap_err().code(),
        "source_changed"
    );
    assert_ne!(source.probe().await.unwrap(), identity);
}

#[tokio::test]
async fn a_file_replaced_between_two_wires_is_no_mix() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.put("image", &content(4_000_000));
    let wire = Cutter::start(nginx.port, vec![100_000]).await;
    let source = web(&agent(), &format!("http://mirror.test:{}/image", wire.port));
    let mut opened = source.open_at(0, None).await.unwrap();
    opened.next_piece().await.unwrap().unwrap();
    nginx.put("image", &content(4_000_001));
    let (rest, result) = drain(opened).await;
    assert!(rest.len() < 100_000);
    assert_eq!(result.unwrap_err().code(), "source_changed");
}

#[tokio::test]
async fn servers_that_cannot_continue_are_said_so() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.put("image", &content(1_000_000));
    for (place, problem) in [
        ("whole", "whole objects only"),
        ("unsure", "neither ETag nor Last-Modified"),
    ] {
        let wire = Cutter::start(nginx.port, vec![100_000]).await;
        let source = web(&agent(), &format!("http://mirror.test:{}/{place}/image", wire.port));
        let (code, text) = failure(&source).await;
        assert_eq!(code, "not_resumable", "{text}");
        assert!(text.contains(problem), "{text}");
    }
}

#[tokio::test]
async fn passwords_are_asked_for() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.put("private/image", b"for readers");
    let agent = agent();
    let at = format!("mirror.test:{}/private/image", nginx.port);
    let login = |password: &str| {
        Some(Login::Basic {
            user: "reader".to_owned(),
            password: password.to_owned(),
        })
    };
    let source = |login| WebSource::new(&agent, &format!("http://{at}"), login).unwrap();
    assert_eq!(fetch(&source(login("open sesame"))).await.unwrap(), b"for readers");
    let (code, text) = failure(&source(login("shut sesame"))).await;
    assert_eq!(code, "unauthorized");
    assert!(!text.contains("shut"), "{text}");
    assert_eq!(failure(&source(None)).await.0, "unauthorized");
    let within = web(&agent, &format!("http://reader:open%20sesame@{at}"));
    assert_eq!(fetch(&within).await.unwrap(), b"for readers");
    assert!(!format!("{within:?} {}", within.location()).contains("sesame"));
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let Some(nginx) = Nginx::start() else { return };
    let content = content(500_000);
    nginx.put("image", &content);
    let url = |host: &str, port: u16| format!("https://{host}:{port}/image");
    let agent = trusting(&nginx.authority);
    assert!(fetch(&web(&agent, &url("mirror.test", nginx.tls))).await.unwrap() == content);
    let tells = async |agent: &Agent, url: &str, code: &str| {
        let (found, text) = failure(&web(agent, url)).await;
        assert_eq!(found, code, "{text}");
    };
    tells(&agent, &url("mirror.test", nginx.tls_expired), "tls_expired").await;
    tells(&agent, &url("mirror.test", nginx.tls_future), "tls_not_yet_valid").await;
    tells(&agent, &url("mirror.test", nginx.tls_wrong_name), "tls_wrong_name").await;
    tells(&agent, &url("another.test", nginx.tls), "tls_wrong_name").await;
    tells(&agent, &url("127.0.0.1", nginx.tls), "tls_wrong_name").await;
    tells(&agent, &url("mirror.test", nginx.port), "tls_not_spoken").await;
    let stranger = trusting(&Authority::new("Somebody else"));
    tells(&stranger, &url("mirror.test", nginx.tls), "tls_unknown_issuer").await;
    // None of these was tried twice, and no request got through.
    assert_eq!(nginx.log().len(), 1, "{:?}", nginx.log());
}

#[tokio::test]
async fn the_hosts_own_authorities_are_trusted_otherwise() {
    let Some(nginx) = Nginx::start() else { return };
    let mut options = options();
    options.authorities_pem = None;
    match Agent::new(options) {
        Ok(agent) => {
            let (code, text) = failure(&web(&agent, &format!("https://mirror.test:{}/", nginx.tls))).await;
            assert_eq!(code, "tls_unknown_issuer", "{text}");
        }
        Err(error) => {
            assert_eq!(error.code(), "no_trust_anchor");
            eprintln!("skipped: this host has no certificate authorities (apt install ca-certificates)");
        }
    }
}

#[test]
fn a_bundle_that_is_none() {
    for bundle in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let mut options = options();
        options.authorities_pem = Some(bundle.as_bytes().to_vec());
        assert_eq!(Agent::new(options).unwrap_err().code(), "no_trust_anchor", "{bundle:?}");
    }
}

#[tokio::test]
async fn a_broken_wire_under_tls() {
    let Some(nginx) = Nginx::start() else { return };
    let content = content(2_000_000);
    nginx.put("image", &content);
    let wire = Cutter::start(nginx.tls, vec![300_000, 1_000, 700_000]).await;
    let agent = trusting(&nginx.authority);
    let source = web(&agent, &format!("https://mirror.test:{}/image", wire.port));
    assert!(fetch(&source).await.unwrap() == content);
    assert_eq!(wire.connections(), 4);
}
