//! Redirects and name services that lead where they should not.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use image_sources::{Agent, AgentOptions, Login, Lookup, WebSource};

use crate::faulty::{Faulty, Reply, object};
use crate::fetched::{agent, content, drain, failure, fetch, loopback_policy, options, web};

/// Gives the addresses of a list in turn, the last one for ever.
struct InTurn(Vec<&'static str>, AtomicUsize);

impl Lookup for InTurn {
    fn lookup(&self, _host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let turn = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
        let answer: Vec<IpAddr> = self.0[turn]
            .split_whitespace()
            .map(|text| text.parse().unwrap())
            .collect();
        Box::pin(async { Ok(answer) })
    }
}

/// Resolves every name to `answers` in turn; may connect to 127.0.0.1 alone.
fn resolving(answers: &[&'static str]) -> Agent {
    let mut policy = loopback_policy();
    policy.allowed_networks = vec!["127.0.0.1".parse().unwrap()];
    Agent::new(AgentOptions {
        policy,
        lookup: Some(Arc::new(InTurn(answers.to_vec(), AtomicUsize::new(0)))),
        ..options()
    })
    .unwrap()
}

#[tokio::test]
async fn a_redirect_to_what_is_denied_is_not_followed() {
    for (to, code) in [
        ("http://169.254.169.254/latest/meta-data/", "denied_address"),
        ("http://[::ffff:169.254.169.254]/", "denied_address"),
        ("http://0xa9fea9fe/", "denied_address"),
        ("http://[::1]/", "denied_address"),
        ("http://127.0.0.2/", "denied_host"),
        ("http://internal.test/", "denied_host"),
        ("//internal.test/", "denied_host"),
        ("http://mirror.test:22/", "denied_port"),
        ("file:///etc/passwd", "denied_scheme"),
        ("ftp://mirror.test/", "denied_scheme"),
        ("http://[", "bad_redirect"),
        ("", "bad_redirect"),
    ] {
        let mut options = options();
        options.policy.denied_hosts = vec!["127.0.0.2".parse().unwrap(), "internal.test".parse().unwrap()];
        options.policy.denied_ports = vec![22];
        let server = Faulty::start(move |_, _| Reply::redirect(to)).await;
        let (found, text) = failure(&web(&Agent::new(options).unwrap(), &server.url("/"))).await;
        assert_eq!(found, code, "{to}: {text}");
        assert_eq!(server.seen().len(), 1, "{to}");
    }
}

#[tokio::test]
async fn redirects_are_followed_up_to_the_bound() {
    let server =
        Faulty::start(
            |_, request| match request.path.strip_prefix("/hop/").unwrap().parse::<u32>().unwrap() {
                0 => object(request, b"content", "\"v1\""),
                // Relative, as most are.
                hop => Reply::redirect(&format!("{}", hop - 1)),
            },
        )
        .await;
    let mut options = options();
    options.policy.redirects_max = 4;
    let agent = Agent::new(options).unwrap();
    assert_eq!(fetch(&web(&agent, &server.url("/hop/4"))).await.unwrap(), b"content");
    assert_eq!(server.seen().len(), 5);
    let (code, text) = failure(&web(&agent, &server.url("/hop/5"))).await;
    assert_eq!(code, "bad_redirect");
    assert!(text.contains("more than 4 times"), "{text}");
    assert_eq!(server.seen().len(), 10);
}

#[tokio::test]
async fn names_that_resolve_to_denied_addresses() {
    let server = Faulty::start(|_, request| object(request, b"content", "\"v1\"")).await;
    for answer in [
        "169.254.169.254",
        "127.0.0.2",
        "::1",
        "::ffff:127.0.0.2",
        "10.0.0.1 ::ffff:0:0 64:ff9b::7f00:2",
    ] {
        let (code, text) = failure(&web(&resolving(&[answer]), &server.url("/"))).await;
        assert_eq!(code, "denied_address", "{answer}: {text}");
        assert!(text.contains("of host mirror.test"), "{text}");
    }
    assert!(server.seen().is_empty());
    // Among others, one that is allowed.
    let mixed = resolving(&["127.0.0.2 169.254.169.254 127.0.0.1"]);
    assert_eq!(fetch(&web(&mixed, &server.url("/"))).await.unwrap(), b"content");
    let (code, text) = failure(&web(&resolving(&[""]), &server.url("/"))).await;
    assert_eq!(code, "unresolved_host", "{text}");
}

#[tokio::test]
async fn a_name_that_changes_its_mind_gains_nothing() {
    let server = Faulty::start(|count, request| {
        let reply = object(request, &content(1000), "\"v1\"");
        if count == 0 { reply.cut(100) } else { reply }
    })
    .await;
    let agent = resolving(&["127.0.0.1", "169.254.169.254"]);
    let (all, result) = drain(web(&agent, &server.url("/")).open_at(0, None).await.unwrap()).await;
    assert_eq!((all.len(), result.unwrap_err().code()), (100, "denied_address"));
    let other = Faulty::start(|_, request| object(request, b"content", "\"v1\"")).await;
    let to = other.url("/");
    let server = Faulty::start(move |_, _| Reply::redirect(&to)).await;
    let agent = resolving(&["127.0.0.1", "169.254.169.254"]);
    assert_eq!(failure(&web(&agent, &server.url("/"))).await.0, "denied_address");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let other = Faulty::start(|_, request| object(request, b"content", "\"v1\"")).await;
    let elsewhere = other.url("/elsewhere");
    let with_password = elsewhere.replace("http://", "http://user:password@");
    let server = Faulty::start(move |_, request| match request.path.as_str() {
        "/start" => Reply::redirect("/next"),
        "/next" => Reply::redirect(&elsewhere),
        _ => Reply::redirect(&with_password),
    })
    .await;
    let agent = agent();
    for login in [
        Login::Basic {
            user: "me".to_owned(),
            password: "secret".to_owned(),
        },
        Login::Bearer {
            token: "secret".to_owned(),
        },
    ] {
        let source = WebSource::new(&agent, &server.url("/start"), Some(login)).unwrap();
        assert_eq!(fetch(&source).await.unwrap(), b"content");
    }
    assert_eq!(fetch(&web(&agent, &server.url("/password"))).await.unwrap(), b"content");
    let sent: Vec<bool> = server
        .seen()
        .iter()
        .map(|seen| seen.request.header("authorization").is_some())
        .collect();
    assert_eq!(sent, [true, true, true, true, false]);
    assert_eq!(other.seen().len(), 3);
    assert!(
        other
            .seen()
            .iter()
            .all(|seen| seen.request.header("authorization").is_none())
    );
    assert!(other.seen().iter().all(|seen| seen.request.header("referer").is_none()));
}

#[tokio::test]
async fn going_on_asks_the_mirror_that_was_begun_with() {
    let mirror = Faulty::start(|count, request| {
        let reply = object(request, &content(1000), "\"mirror\"");
        match count {
            0 => reply.cut(100),
            1 => reply.cut(200),
            // Its link has run out by then.
            2 => Reply::new(403, b"expired"),
            _ => reply,
        }
    })
    .await;
    let to = mirror.url("/image?signature=1");
    let server = Faulty::start(move |_, _| Reply::redirect(&to)).await;
    assert!(fetch(&web(&agent(), &server.url("/"))).await.unwrap() == content(1000));
    assert_eq!(server.seen().len(), 2);
    let starts: Vec<_> = mirror.seen().iter().map(|seen| seen.request.start()).collect();
    assert_eq!(starts, [None, Some(100), Some(300), Some(300)]);
}

#[test]
fn sources_are_refused_before_anything_is_asked() {
    let agent = agent();
    let code = |url: &str| WebSource::new(&agent, url, None).map_or_else(|error| error.code(), |_| "ok");
    assert_eq!(code("http://mirror.test/a"), "ok");
    assert_eq!(code("http://169.254.169.254/a"), "denied_address");
    assert_eq!(code("ftp://mirror.test/a"), "denied_scheme");
    assert_eq!(code("mirror.test/a"), "bad_location");
    assert_eq!(code(""), "bad_location");
    assert_eq!(
        code(&format!("http://mirror.test/{}", "a".repeat(9000))),
        "bad_location"
    );
}
