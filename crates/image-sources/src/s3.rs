//! Images from object stores that speak S3.
//!
//! Requests are signed in the URL (signature version 4, query form), anew for each request; the rest is a fetch over HTTP like any
//! other, under the same policy and with the same way of going on after a break.

use std::fmt;
use std::sync::Arc;

use rusty_s3::{Bucket, Credentials, UrlStyle};
use url::Url;

use crate::agent::{Agent, shown};
use crate::error::SourceError;
use crate::fetch;
use crate::identity::Identity;
use crate::object::Object;
use crate::opened::Opened;
use crate::target::Target;

/// Longest key (S3 user guide, "object key names"), bytes.
const KEY_MAX: usize = 1024;

/// Where the bucket stands in URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BucketStyle {
    /// `https://endpoint/bucket/key`: what servers of one's own mostly want.
    #[default]
    Path,
    /// `https://bucket.endpoint/key`: what Amazon wants.
    VirtualHost,
}

/// An access key. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Key {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
    /// Session token of temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Key(…)")
    }
}

/// A server that speaks S3.
#[derive(Debug, Clone)]
pub struct S3Server {
    /// Its URL, `http` or `https`; a path in it is the beginning of every path.
    pub endpoint: String,
    /// Region that requests are signed for; servers of one's own mostly want `us-east-1`.
    pub region: String,
    /// Where the bucket stands in URLs.
    pub style: BucketStyle,
    /// Who asks; none for what everybody may read.
    pub key: Option<S3Key>,
}

/// One object in an object store.
#[derive(Debug, Clone)]
pub struct S3Source {
    agent: Agent,
    server: String,
    target: Arc<Target>,
}

impl S3Source {
    /// Takes `s3://bucket/key` on `server`; the key is taken as it stands, without decoding. With `version`, that version of the
    /// object. Nothing is asked yet, but the agent's address policy is checked as far as the URL alone tells.
    ///
    /// # Errors
    /// [`SourceError::Location`] if that is no object or no server, [`SourceError::Refused`] if the policy denies it.
    pub fn new(agent: &Agent, server: &S3Server, location: &str, version: Option<String>) -> Result<Self, SourceError> {
        let wrong = |problem: &str| SourceError::Location {
            text: location.chars().take(KEY_MAX).collect(),
            problem: problem.to_owned(),
        };
        let (bucket, key) = location
            .strip_prefix("s3://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| wrong("it has to look like s3://bucket/key"))?;
        check_name(bucket, key).map_err(wrong)?;
        // The endpoint may hold a password, which is not repeated.
        let endpoint = Url::parse(&server.endpoint).map_err(|error| SourceError::Location {
            text: "the S3 endpoint".to_owned(),
            problem: format!("{error}; it has to look like https://s3.example.org"),
        })?;
        let authority = match (endpoint.host_str(), endpoint.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let style = match server.style {
            BucketStyle::Path => UrlStyle::Path,
            BucketStyle::VirtualHost => UrlStyle::VirtualHost,
        };
        let bucket = Bucket::new(endpoint, style, bucket.to_owned(), server.region.clone())
            .map_err(|error| wrong(&format!("bucket and endpoint do not go together: {error}")))?;
        agent
            .policy
            .check_url(bucket.base_url())
            .map_err(|refusal| SourceError::Refused {
                url: shown(bucket.base_url()),
                refusal,
            })?;
        let credentials = server.key.clone().map(|key| match key.session_token {
            Some(token) => Credentials::new_with_token(key.id, key.secret, token),
            None => Credentials::new(key.id, key.secret),
        });
        let object = Object {
            bucket,
            key: key.to_owned(),
            version,
            credentials,
        };
        Ok(Self {
            agent: agent.clone(),
            server: authority,
            target: Arc::new(Target::S3(object)),
        })
    }

    /// Opens it at byte `offset`. With `expected`, from an earlier [`Opened::identity`] or of known length only, it has to be that
    /// object.
    ///
    /// # Errors
    /// [`SourceError`], when its own tries are used up.
    pub async fn open_at(&self, offset: u64, expected: Option<&Identity>) -> Result<Opened, SourceError> {
        fetch::open(&self.agent, &self.target, offset, expected).await
    }

    /// Asks for its length and validators only (`HeadObject`).
    ///
    /// # Errors
    /// [`SourceError`], when its own tries are used up.
    pub async fn probe(&self) -> Result<Identity, SourceError> {
        fetch::probe(&self.agent, &self.target).await
    }

    /// The server: host, and port if it is not the usual one.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Bucket, key and server.
    #[must_use]
    pub fn location(&self) -> String {
        self.target.shown()
    }
}

/// Refuses names that are none, and those that a URL cannot carry unchanged.
fn check_name(bucket: &str, key: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins = bucket.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !begins || bucket.len() > 255 || !bucket.bytes().all(plain) {
        return Err("its bucket has to be of letters, digits, '-', '_' and '.', and begin with a letter or digit");
    }
    if key.is_empty() || key.len() > KEY_MAX {
        return Err("its key has to have 1 to 1024 bytes");
    }
    if key.split('/').any(|part| matches!(part, "." | "..")) || key.contains(char::is_control) {
        return Err("its key must not have the parts '.' or '..', which HTTP takes away, nor control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use reqwest::Method;

    use super::*;
    use crate::agent::AgentOptions;
    use crate::policy::AddressPolicy;

    fn agent(policy: AddressPolicy) -> Agent {
        // No certificate is checked here; the host may have no authorities.
        let authority = rcgen::generate_simple_self_signed(vec!["ca.test".to_owned()]).unwrap();
        Agent::new(AgentOptions {
            policy,
            authorities_pem: Some(authority.cert.pem().into_bytes()),
            ..AgentOptions::default()
        })
        .unwrap()
    }

    fn server(endpoint: &str, style: BucketStyle) -> S3Server {
        S3Server {
            endpoint: endpoint.to_owned(),
            region: "us-east-1".to_owned(),
            style,
            key: Some(S3Key {
                id: "id".to_owned(),
                secret: "very secret".to_owned(),
                session_token: None,
            }),
        }
    }

    #[test]
    fn urls_of_both_styles() {
        let agent = agent(AddressPolicy::default());
        let url = |style, location: &str, version: Option<&str>| {
            let server = server("https://s3.test/base", style);
            let source = S3Source::new(&agent, &server, location, version.map(str::to_owned)).unwrap();
            assert!(!format!("{source:?} {server:?}").contains("very secret"));
            source.target.url(&Method::GET)
        };
        let path = url(BucketStyle::Path, "s3://images/debian 12/a+b?.qcow2", None);
        assert_eq!(path.host_str(), Some("s3.test"));
        assert_eq!(path.path(), "/base/images/debian%2012/a%2Bb%3F.qcow2");
        assert!(path.query().unwrap().contains("X-Amz-Signature="));
        let host = url(BucketStyle::VirtualHost, "s3://images/a", Some("v 1"));
        assert_eq!(host.host_str(), Some("images.s3.test"));
        assert_eq!(host.path(), "/base/a");
        assert!(host.query().unwrap().contains("versionId=v%201"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let agent = agent(AddressPolicy::default());
        let code = |endpoint: &str, style, location: &str| {
            S3Source::new(&agent, &server(endpoint, style), location, None).map_or_else(|error| error.code(), |_| "ok")
        };
        let path = |location| code("https://s3.test", BucketStyle::Path, location);
        assert_eq!(path("s3://images/a"), "ok");
        for location in [
            "images/a",
            "s3://images",
            "s3://images/",
            "s3:///a",
            "s3://../a",
            "s3://a b/c",
            "s3://images/../other/a",
            "s3://images/a/./b",
            "s3://images/a\nb",
            "s3://a%2fb/c",
            "http://images/a",
        ] {
            assert_eq!(path(location), "bad_location", "{location}");
        }
        assert_eq!(code("no url", BucketStyle::Path, "s3://images/a"), "bad_location");
        assert_eq!(
            code("ftp://s3.test", BucketStyle::Path, "s3://images/a"),
            "bad_location"
        );
        assert_eq!(
            code("https://s3.test:9000", BucketStyle::Path, "s3://images/a"),
            "denied_port"
        );
        assert_eq!(
            code("https://169.254.169.254", BucketStyle::Path, "s3://images/a"),
            "denied_address"
        );
    }
}
