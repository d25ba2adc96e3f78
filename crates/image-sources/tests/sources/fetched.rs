//! What tests fetch with, and what they expect to get.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use image_sources::{AddressPolicy, Agent, AgentOptions, Limits, Lookup, Opened, SourceError, WebSource};

/// Says for every name that it is this host's.
pub(crate) struct Loopback;

impl Lookup for Loopback {
    fn lookup(&self, _host: String) -> futures_util::future::BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
    }
}

/// All ports of this host and nothing else.
pub(crate) fn loopback_policy() -> AddressPolicy {
    AddressPolicy {
        allowed_ports: vec![],
        allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
        ..AddressPolicy::default()
    }
}

/// Quick failures.
pub(crate) fn limits() -> Limits {
    Limits {
        connect_timeout_ms: 5_000,
        answer_timeout_ms: 5_000,
        idle_timeout_ms: 5_000,
        rate_min_bytes_per_s: 0,
        tries_max: 3,
        progress_bytes: 1,
        pause_first_ms: 2,
        pause_max_ms: 2_000,
        ..Limits::default()
    }
}

pub(crate) fn options() -> AgentOptions {
    AgentOptions {
        policy: loopback_policy(),
        limits: limits(),
        // Plain HTTP needs none, and the host may have none.
        authorities_pem: Some(crate::certificates::Authority::new("unused").pem().into_bytes()),
        lookup: Some(Arc::new(Loopback)),
    }
}

pub(crate) fn agent() -> Agent {
    Agent::new(options()).unwrap()
}

pub(crate) fn web(agent: &Agent, url: &str) -> WebSource {
    WebSource::new(agent, url, None).unwrap()
}

/// Bytes of which no two stretches are alike.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads to the end; the error, if there is one, comes with what was read before it.
pub(crate) async fn drain(mut opened: Opened) -> (Vec<u8>, Result<(), SourceError>) {
    let mut all = Vec::new();
    loop {
        match opened.next_piece().await {
            Ok(Some(piece)) => all.extend_from_slice(&piece),
            Ok(None) => return (all, Ok(())),
            Err(error) => {
                assert!(
                    matches!(opened.next_piece().await, Ok(None)),
                    "something came after an error"
                );
                return (all, Err(error));
            }
        }
    }
}

/// All bytes of a source.
pub(crate) async fn fetch(source: &WebSource) -> Result<Vec<u8>, SourceError> {
    let (all, result) = drain(source.open_at(0, None).await?).await;
    result.map(|()| all)
}

/// The code of the error that fetching ends with, and the error with its sources as text.
pub(crate) async fn failure(source: &WebSource) -> (&'static str, String) {
    match fetch(source).await {
        Ok(all) => panic!("{} gave {} bytes", source.location(), all.len()),
        Err(error) => told(&error),
    }
}

pub(crate) fn told(error: &SourceError) -> (&'static str, String) {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    (error.code(), text)
}
