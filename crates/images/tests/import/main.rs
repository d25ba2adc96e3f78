//! Imports from real servers by every method: what comes out, and what is left when they go wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "what surrounds a test fails the test by panicking, and says so when it skips"
)]

mod clones;
mod containers;
mod formats;
mod full;
mod hostile;
mod hostile_registry;
mod kills;
mod layers;
mod nginx;
mod objects;
mod publish;
mod real_registry;
mod registries;
mod registry_stub;
mod scripted;
mod sealed;
mod stores;
mod trusted;
mod uploads;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use image_formats::Expectations;
use image_sources::{AddressPolicy, Agent, AgentOptions, Limits, WebSource};
use images::{
    ImportError, ImportRequest, ImportSource, Imported, Progress, Reference, RequestedProof, Settings, Store,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Goes to all ports of this host and nowhere else.
fn agent() -> Agent {
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    Agent::new(AgentOptions {
        policy: AddressPolicy {
            allowed_ports: vec![],
            allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            ..AddressPolicy::default()
        },
        limits: Limits {
            tries_max: 2,
            pause_first_ms: 2,
            ..Limits::default()
        },
        // Plain HTTP needs none, and the host may have none.
        authorities_pem: Some(authority.pem().into_bytes()),
        lookup: None,
    })
    .unwrap()
}

fn web(url: &str) -> ImportSource {
    ImportSource::Web(WebSource::new(&agent(), url, None).unwrap())
}

fn settings(root: &Path) -> Settings {
    Settings {
        root: root.to_path_buf(),
        max_disk_bytes: 1 << 30,
        checkpoint_bytes: 1 << 20,
        // Those that the tests begin, also where none of them is listed as insecure.
        registry_policy: AddressPolicy {
            allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            ..images::registry_policy()
        },
        ..Settings::default()
    }
}

fn open(root: &Path) -> Store {
    Store::open(settings(root)).unwrap().0
}

fn request(source: ImportSource) -> ImportRequest {
    ImportRequest {
        source,
        expected: Expectations::up_to(1 << 30),
        evidence: RequestedProof::default(),
        trust: Arc::default(),
        stores: Vec::new(),
    }
}

async fn import(store: &Store, request: ImportRequest) -> Result<Imported, ImportError> {
    let (progress, _) = watch::channel(Progress::default());
    store.import(request, &progress, &CancellationToken::new()).await
}

/// Imports a container disk.
async fn pull(store: &Store, reference: &Reference) -> Result<Imported, ImportError> {
    let reference = reference.clone();
    import(store, request(ImportSource::Registry { reference })).await
}

/// The error and all its sources on one line, as an operator sees it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The code of an import that has to fail, with nothing left in the store.
async fn refused(store: &Store, request: ImportRequest) -> &'static str {
    let error = import(store, request).await.unwrap_err();
    assert!(error.to_string().len() > 10, "{error}");
    assert_eq!(left(store), Vec::<String>::new(), "{error}");
    error.code()
}

/// What a store has beside sealed images.
fn left(store: &Store) -> Vec<String> {
    names(&store.settings().root.join("tmp"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn have(program: &str) -> bool {
    let found = ["/usr/bin", "/usr/local/bin", "/usr/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program in `dir`; words are separated by single blanks.
fn run(dir: &Path, line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(dir)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// 8 MiB with data at both ends and a sector's worth in the middle.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 8 << 20];
    disk[4096..104_096].copy_from_slice(&registry_stub::noise(100_000));
    disk[4 << 20..(4 << 20) + 5].copy_from_slice(b"karat");
    disk[(8 << 20) - 3..].copy_from_slice(b"end");
    disk
}
