//! Objects from a real S3 server (s3s on a directory), in this process.

use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use image_sources::{Agent, BucketStyle, S3Key, S3Server, S3Source, SourceError};
use rusty_s3::actions::{CreateBucket, PutObject, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;

use crate::cutter::Cutter;
use crate::fetched::{agent, content, drain, told};

const SECRET: &str = "a very secret key";

/// The server; it ends when this is dropped.
struct Store {
    port: u16,
    task: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Starts it with a bucket `images`.
    async fn start() -> Self {
        Self::start_for(None).await
    }

    /// With a `domain` it takes buckets as parts of host names too; the port is added to it.
    async fn start_for(domain: Option<&str>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(directory.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("reader", SECRET));
        if let Some(domain) = domain {
            service.set_host(SingleDomain::new(&format!("{domain}:{port}")).unwrap());
        }
        let service = service.build();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let store = Self {
            port,
            task,
            _directory: directory,
        };
        let bucket = store.bucket();
        let credentials = Credentials::new("reader", SECRET);
        let url = CreateBucket::new(&bucket, &credentials).sign(Duration::from_secs(60));
        store.put_to(url, Vec::new()).await;
        store
    }

    fn bucket(&self) -> Bucket {
        let endpoint = format!("http://127.0.0.1:{}", self.port).parse().unwrap();
        Bucket::new(endpoint, UrlStyle::Path, "images", "us-east-1").unwrap()
    }

    async fn put_to(&self, url: url::Url, body: Vec<u8>) {
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let response = client.put(url).body(body).send().await.unwrap();
        let status = response.status();
        assert!(status.is_success(), "{status}: {}", response.text().await.unwrap());
    }

    /// Uploads an object as any client does.
    async fn put(&self, key: &str, content: &[u8]) {
        let bucket = self.bucket();
        let credentials = Credentials::new("reader", SECRET);
        let url = PutObject::new(&bucket, Some(&credentials), key).sign(Duration::from_secs(60));
        self.put_to(url, content.to_vec()).await;
    }
}

fn server(endpoint: &str, secret: Option<&str>) -> S3Server {
    S3Server {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        style: BucketStyle::Path,
        key: secret.map(|secret| S3Key {
            id: "reader".to_owned(),
            secret: secret.to_owned(),
            session_token: None,
        }),
    }
}

fn at(port: u16) -> S3Server {
    server(&format!("http://127.0.0.1:{port}"), Some(SECRET))
}

fn source(agent: &Agent, server: &S3Server, key: &str) -> S3Source {
    S3Source::new(agent, server, &format!("s3://images/{key}"), None).unwrap()
}

async fn fetch(source: &S3Source) -> Result<Vec<u8>, SourceError> {
    let (all, result) = drain(source.open_at(0, None).await?).await;
    result.map(|()| all)
}

#[tokio::test]
async fn an_object_comes_whole_and_from_its_middle() {
    let store = Store::start().await;
    let content = content(3_000_000);
    store.put("debian/12 nightly+1.qcow2", &content).await;
    let source = source(&agent(), &at(store.port), "debian/12 nightly+1.qcow2");
    let opened = source.open_at(0, None).await.unwrap();
    let identity = opened.identity().clone();
    assert_eq!(identity.length_bytes, Some(3_000_000));
    assert!(identity.etag.is_some());
    let (all, result) = drain(opened).await;
    assert!(result.is_ok() && all == content);
    let (rest, result) = drain(source.open_at(2_500_000, Some(&identity)).await.unwrap()).await;
    assert!(result.is_ok() && rest == content[2_500_000..]);
    assert_eq!(source.probe().await.unwrap().length_bytes, Some(3_000_000));
    assert!(source.location().starts_with("s3://images/debian/12 nightly+1.qcow2"));
}

#[tokio::test]
async fn buckets_as_part_of_the_host() {
    let store = Store::start_for(Some("s3.test")).await;
    store.put("image", b"content").await;
    let mut server = server(&format!("http://s3.test:{}", store.port), Some(SECRET));
    server.style = BucketStyle::VirtualHost;
    assert_eq!(fetch(&source(&agent(), &server, "image")).await.unwrap(), b"content");
}

#[tokio::test]
async fn a_wire_that_breaks_costs_no_byte_twice() {
    let store = Store::start().await;
    let content = content(5_000_000);
    store.put("image", &content).await;
    let wire = Cutter::start(store.port, vec![1_000_000, 500, 2_000_000]).await;
    let source = source(&agent(), &at(wire.port), "image");
    let opened = source.open_at(0, None).await.unwrap();
    let progress = opened.progress();
    let (all, result) = drain(opened).await;
    result.unwrap();
    assert!(all == content);
    assert_eq!(wire.connections(), 4);
    assert_eq!((progress.fetched_bytes(), progress.retries()), (5_000_000, 3));
}

#[tokio::test]
async fn an_object_replaced_between_two_wires_is_no_mix() {
    let store = Store::start().await;
    store.put("image", &content(1_000_000)).await;
    let wire = Cutter::start(store.port, vec![100_000]).await;
    let mut opened = source(&agent(), &at(wire.port), "image")
        .open_at(0, None)
        .await
        .unwrap();
    opened.next_piece().await.unwrap().unwrap();
    // The same length: only the entity tag tells, and this server does not mind `If-Range`.
    store.put("image", &content(1_000_008)[8..]).await;
    let (rest, result) = drain(opened).await;
    assert!(rest.len() < 100_000);
    assert_eq!(result.unwrap_err().code(), "source_changed");
}

#[tokio::test]
async fn what_an_s3_server_refuses() {
    let store = Store::start().await;
    store.put("image", b"content").await;
    let agent = agent();
    let endpoint = format!("http://127.0.0.1:{}", store.port);
    let (code, text) = told(
        &fetch(&source(&agent, &server(&endpoint, Some("wrong")), "image"))
            .await
            .unwrap_err(),
    );
    assert_eq!(code, "unauthorized");
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(!text.contains("X-Amz"), "{text}");
    let (code, text) = told(
        &fetch(&source(&agent, &server(&endpoint, None), "image"))
            .await
            .unwrap_err(),
    );
    assert_eq!(code, "unauthorized", "{text}");
    let (code, text) = told(&fetch(&source(&agent, &at(store.port), "missing")).await.unwrap_err());
    assert_eq!(code, "not_found");
    assert!(text.contains("NoSuchKey"), "{text}");
    let elsewhere = S3Source::new(&agent, &at(store.port), "s3://nowhere/image", None).unwrap();
    assert_eq!(fetch(&elsewhere).await.unwrap_err().code(), "not_found");
}

#[tokio::test]
async fn the_address_policy_holds_for_object_stores_too() {
    let mut options = crate::fetched::options();
    options.policy.allowed_networks = vec!["127.0.0.2".parse().unwrap()];
    let agent = Agent::new(options).unwrap();
    let refused = S3Source::new(&agent, &at(9000), "s3://images/image", None).unwrap_err();
    assert_eq!(refused.code(), "denied_address");
    let named = server("http://s3.test:9000", Some(SECRET));
    let source = source(&agent, &named, "image");
    assert_eq!(fetch(&source).await.unwrap_err().code(), "denied_address");
}
