//! Registries that mean harm: what they make this host read, where they lead it, and to whom it tells a password.

use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use image_sources::Limits;
use images::{ImageDigest, ImportSource, Progress, Reference, Settings, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{noise, tar};
use crate::scripted::{Answer, Asked, Scripted};
use crate::{import, pull, request, settings, told};

/// More than sockets hold, far less than endless.
const TAKEN_MAX: u64 = 16 << 20;

/// A store that knows user `karat` for every host of `hosts`.
fn open(root: &Path, insecure: &[&str], change: impl FnOnce(&mut Settings)) -> Store {
    let logins: serde_json::Map<_, _> = insecure
        .iter()
        .chain(&["127.0.0.1"])
        .map(|host| {
            (
                (*host).to_owned(),
                serde_json::json!({"username": "karat", "password": "secret"}),
            )
        })
        .collect();
    let auth = root.join("auth.json");
    std::fs::write(&auth, serde_json::json!({ "auths": logins }).to_string()).unwrap();
    let mut settings = Settings {
        insecure_registries: insecure.iter().map(|host| (*host).to_owned()).collect(),
        registry_auth_file: Some(auth),
        registry_policy: images::registry_policy(),
        ..settings(&root.join("store"))
    };
    change(&mut settings);
    Store::open(settings).unwrap().0
}

fn reference(host: &str) -> Reference {
    format!("{host}/demo:v1").parse().unwrap()
}

/// The code and the text of an import that fails.
async fn fails(store: &Store, host: &str) -> (&'static str, String) {
    let began = Instant::now();
    let error = pull(store, &reference(host)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(store.list().unwrap().is_empty());
    (error.code(), told(&error))
}

fn is_manifest(asked: &Asked) -> bool {
    asked.line.contains("/v2/demo/manifests/")
}

#[tokio::test]
async fn endless_answers_are_read_within_bounds() {
    for (path, status, code) in [
        ("/token", 200, "registry_bad_answer"),
        ("/token", 500, "registry_status"),
        ("/v2/", 200, "registry_manifest"),
        ("/v2/", 500, "registry_status"),
        ("/v2/", 401, "registry_unauthorized"),
    ] {
        let server = Scripted::start(|host| {
            let realm = format!("http://{host}/token");
            move |asked: &Asked| match asked.line.contains(path) {
                true => Answer::Endless(status),
                false => Answer::challenge(&realm),
            }
        });
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), &[&server.host], |_| ());
        let (found, text) = fails(&store, &server.host).await;
        assert_eq!(found, code, "{path} {status}: {text}");
        assert!(server.written() < TAKEN_MAX, "{path} {status}: {}", server.written());
    }
}

#[tokio::test]
async fn redirects_lead_to_no_address_that_is_closed() {
    let other = Scripted::start(|_| |_: &Asked| Answer::ok("{}"));
    let port = other.host.rsplit_once(':').unwrap().1.to_owned();
    for (to, wanted) in [
        ("http://169.254.169.254/latest/meta-data".to_owned(), "link-local"),
        (format!("http://{}/manifest", other.host), "loopback"),
        (format!("http://localhost:{port}/manifest"), "loopback"),
        (format!("http://[::ffff:127.0.0.1]:{port}/manifest"), "loopback"),
        ("file:///etc/passwd".to_owned(), "scheme file"),
    ] {
        let server = Scripted::start(|_| {
            let to = to.clone();
            move |_: &Asked| Answer::redirect(&to)
        });
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), &[&server.host], |_| ());
        let (code, text) = fails(&store, &server.host).await;
        assert_eq!(code, "registry_denied", "{to}: {text}");
        assert!(text.contains(wanted), "{to}: {text}");
    }
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn a_registry_that_is_not_listed_is_guarded_by_itself() {
    let server = Scripted::start(|_| |_: &Asked| Answer::ok("{}"));
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &[], |_| ());
    let (code, text) = fails(&store, &server.host).await;
    assert_eq!(code, "registry_denied", "{text}");
    // What is denied by name stays denied for one that is listed.
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &[&server.host], |settings| {
        settings.registry_policy.denied_hosts = vec!["127.0.0.1".parse().unwrap()];
    });
    let (code, text) = fails(&store, &server.host).await;
    assert_eq!(
        (code, text.contains("denied_hosts")),
        ("registry_denied", true),
        "{text}"
    );
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn passwords_go_to_no_token_service_elsewhere_in_plain() {
    let spy = Scripted::start(|_| |_: &Asked| Answer::ok(r#"{"token":"t"}"#));
    let port = spy.host.rsplit_once(':').unwrap().1.to_owned();
    let realms = [
        format!("http://localhost:{port}/token"),
        format!("http://user:word@{}/token", spy.host),
        "https://169.254.169.254/token".to_owned(),
        "ftp://127.0.0.1/token".to_owned(),
        "no url".to_owned(),
    ];
    for realm in realms {
        let server = Scripted::start(|_| {
            let realm = realm.clone();
            move |_: &Asked| Answer::challenge(&realm)
        });
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), &[&server.host], |_| ());
        let (code, text) = fails(&store, &server.host).await;
        assert_eq!(code, "registry_denied", "{realm}: {text}");
    }
    // Of a registry over TLS nothing goes over plain HTTP at all: neither for a token nor behind a redirect.
    let plain = format!("http://{}/token", spy.host);
    let answers = [(|to: &str| Answer::challenge(to)) as fn(&str) -> Answer, |to: &str| {
        Answer::redirect(to)
    }];
    for answer in answers {
        let (server, authority) = Scripted::start_tls(|_| {
            let plain = plain.clone();
            move |_: &Asked| answer(&plain)
        });
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), &[], |settings| {
            settings.registry_authorities_pem = Some(authority);
            settings.registry_policy.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
            settings.registry_policy.redirect_to_plain_http = true;
        });
        let (code, text) = fails(&store, &server.host).await;
        assert_eq!(code, "registry_denied", "{text}");
        assert_eq!(server.asked().len(), 1);
    }
    assert!(spy.asked().is_empty());
}

#[tokio::test]
async fn tokens_and_passwords_stay_with_those_they_are_for() {
    let layer = tar(&[("disk/a.img", &noise(4096))]);
    let digest = ImageDigest::of(&layer);
    let store_of_blobs = Scripted::start(|_| {
        let layer = layer.clone();
        move |_: &Asked| Answer::ok(layer.clone())
    });
    let manifest = format!(
        r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{}}}]}}"#,
        layer.len()
    );
    let registry = Scripted::start(|host| {
        let realm = format!("http://{host}/token?account=a");
        let (manifest, blobs) = (manifest.clone(), format!("http://{}/blob", store_of_blobs.host));
        move |asked: &Asked| {
            if asked.line.contains("/token") {
                return Answer::ok(r#"{"access_token":"the-token","expires_in":60}"#);
            }
            match asked.authorization() {
                Some("Bearer the-token") if is_manifest(asked) => Answer::ok(manifest.clone()),
                Some("Bearer the-token") => Answer::redirect(&blobs),
                _ => Answer::challenge(&realm),
            }
        }
    });
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &[&registry.host], |settings| {
        settings.registry_policy.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
    });
    pull(&store, &reference(&registry.host))
        .await
        .map_err(|error| told(&error))
        .unwrap();
    let asked = registry.asked();
    assert_eq!(asked[0].authorization(), None);
    assert_eq!(
        asked[1].line,
        "GET /token?account=a&service=test&scope=repository%3Ademo%3Apull"
    );
    // karat:secret
    assert_eq!(asked[1].authorization(), Some("Basic a2FyYXQ6c2VjcmV0"));
    assert!(
        asked.iter().filter(|asked| asked.line.contains("/token")).count() == 1,
        "{asked:?}"
    );
    let elsewhere = store_of_blobs.asked();
    assert_eq!(elsewhere.len(), 1);
    assert_eq!(elsewhere[0].authorization(), None);
}

/// Waits little.
fn hasty(settings: &mut Settings) {
    settings.registry_limits = Limits {
        connect_timeout_ms: 1000,
        answer_timeout_ms: 1000,
        idle_timeout_ms: 1000,
        rate_min_bytes_per_s: 1000,
        rate_window_ms: 500,
        ..Limits::default()
    };
}

#[tokio::test]
async fn one_who_sends_slowly_on_purpose_is_left() {
    let layer = tar(&[("disk/a.img", &noise(4096))]);
    let digest = ImageDigest::of(&layer);
    let manifest = format!(
        r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{}}}]}}"#,
        layer.len()
    );
    for (is_blob, code) in [(false, "registry_unreachable"), (true, "registry_broke_off")] {
        let server = Scripted::start(|_| {
            let (manifest, layer) = (manifest.clone(), layer.clone());
            move |asked: &Asked| match (is_manifest(asked), is_blob) {
                (true, true) => Answer::ok(manifest.clone()),
                // From where it is asked: a client that does not give up gets on in small steps.
                (true, false) => Answer::Dripping(200, manifest.clone().into()),
                (false, _) => match asked.headers.get("range") {
                    None => Answer::Dripping(200, layer.clone()),
                    Some(_) => Answer::Whole(503, Vec::new(), Vec::new()),
                },
            }
        });
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), &[&server.host], hasty);
        let (found, text) = fails(&store, &server.host).await;
        let codes = if is_blob { [code, "registry_status"] } else { [code; 2] };
        assert!(codes.contains(&found), "{found}: {text}");
        assert!(!server.asked().is_empty());
    }
}

#[tokio::test]
async fn one_who_takes_nothing_ends_the_push() {
    let server = Scripted::start(|host| {
        let place = format!("http://{host}/upload/1");
        move |asked: &Asked| match asked.line.starts_with("POST") {
            true => Answer::Whole(202, vec![("location", place.clone())], Vec::new()),
            false => Answer::Deaf,
        }
    });
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &[&server.host], hasty);
    let source = ImportSource::Upload(Box::new(Cursor::new(noise(24 << 20))));
    let image = import(&store, request(source)).await.unwrap().image;
    let (progress, _) = watch::channel(Progress::default());
    let to = reference(&server.host);
    let began = Instant::now();
    let cancel = CancellationToken::new();
    let pushing = store.push(&image.digest, &to, &progress, &cancel);
    let error = tokio::time::timeout(Duration::from_secs(60), pushing)
        .await
        .unwrap()
        .unwrap_err();
    assert!(told(&error).contains("too slow"), "{}", told(&error));
    assert!(
        server
            .asked()
            .iter()
            .any(|asked| asked.line.starts_with("PATCH /upload/1"))
    );
    eprintln!("left after {:?}", began.elapsed());
}
