//! One image in one registry: manifests and blobs over HTTP (OCI distribution specification 1.1).
//!
//! Every answer is bounded in length and in time, and every connection is under the policy of [`crate::registry_agents`].
//! Credentials go to the registry's own scheme, host and port, and to the token service it names there: over HTTPS, or in plain
//! where the registry is listed as insecure and the token service is on the same host or listed too. Behind a redirect there are
//! none.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use image_sources::{Agent, Call, Reply, SourceError, TlsFault};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use crate::challenge::Challenge;
use crate::credentials::{self, Login};
use crate::error::Cause;
use crate::registry_agents::{Pair, RegistryAgents};
use crate::{ImageDigest, PullError, Reference, Settings};

/// Largest manifest read, bytes: what registries must at least accept (OCI distribution specification 1.1).
pub(crate) const MANIFEST_MAX: usize = 4 << 20;
/// Longest answer of a token service, bytes; tokens with many scopes have some KiB.
const TOKEN_MAX: usize = 64 << 10;
/// What references call Docker's own registry, and where that is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// Media types a manifest may have.
pub(crate) const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Where a registry tells a manifest's digest (OCI distribution specification 1.1, "pulling manifests").
const DIGEST_HEADER: &str = "docker-content-digest";

/// What is to be done with the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Pull,
    Push,
}

impl Intent {
    /// As scopes of tokens have it.
    const fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

/// A registry one image is fetched from, or sent to.
pub(crate) struct Registry {
    reference: Reference,
    /// `https://host:port/v2/repository/`
    base: Url,
    plain_http: bool,
    insecure_registries: Vec<String>,
    intent: Intent,
    /// For the registry itself, and for all else.
    home: Agent,
    guarded: Agent,
    login: Option<Login>,
    /// What the registry wants to see, once it said so.
    secret: Mutex<Option<HeaderValue>>,
}

/// A blob on its way.
pub(crate) struct BlobBody {
    /// True if it begins at the offset asked for; else it begins at 0.
    pub(crate) continued: bool,
    /// Pieces; an error ends it.
    pub(crate) stream: BoxStream<'static, Result<Bytes, io::Error>>,
}

/// What a token service answers.
#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
}

/// Why the token service that a registry names is not asked.
#[derive(Debug, thiserror::Error)]
#[error("it wants a token from {realm:?}, {problem}")]
struct BadRealm {
    realm: String,
    problem: String,
}

impl Registry {
    /// Prepares to talk to the registry of `reference`; nothing is asked yet. Plain HTTP is spoken only to registries the settings
    /// name, as host or host:port.
    pub(crate) fn connect(
        reference: &Reference,
        settings: &Settings,
        agents: &RegistryAgents,
        intent: Intent,
    ) -> Result<Self, PullError> {
        let login = match &settings.registry_auth_file {
            Some(path) => credentials::find(path, reference)?,
            None => None,
        };
        let name = reference.registry();
        let plain_http = settings.insecure_registries.iter().any(|listed| listed == name);
        let Pair { guarded, listed } = agents.get(settings).map_err(|source| PullError::Unreachable {
            registry: name.to_owned(),
            hint: "install package ca-certificates, or check the certificate authorities that were configured"
                .to_owned(),
            source: Box::new(source),
        })?;
        let scheme = if plain_http { "http" } else { "https" };
        let host = if name == DOCKER_HUB.0 { DOCKER_HUB.1 } else { name };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{}/", reference.repository()));
        let base = base.map_err(|error| PullError::Manifest {
            reference: reference.to_string(),
            problem: format!("its registry is no host: {error}"),
        })?;
        Ok(Self {
            reference: reference.clone(),
            base,
            plain_http,
            insecure_registries: settings.insecure_registries.clone(),
            intent,
            home: if plain_http { listed } else { guarded.clone() },
            guarded,
            login,
            secret: Mutex::default(),
        })
    }

    /// The manifest or index called `name` (a tag or a digest), and its digest.
    pub(crate) async fn manifest(&self, name: &str) -> Result<(Vec<u8>, ImageDigest), PullError> {
        let body = self.get(&format!("manifests/{name}"), &ACCEPTED.join(", ")).await?;
        let found = ImageDigest::of(&body);
        if let Ok(expected) = name.parse::<ImageDigest>()
            && expected != found
        {
            return Err(PullError::DigestMismatch {
                subject: format!("manifest of {}", self.reference),
                expected,
                found,
            });
        }
        Ok((body, found))
    }

    /// Digest of the manifest or index called `name`, asked for without the manifest where the registry tells it.
    pub(crate) async fn manifest_digest(&self, name: &str) -> Result<ImageDigest, PullError> {
        let call = self.question(Method::HEAD, &format!("manifests/{name}"), &ACCEPTED.join(", "))?;
        let reply = self.ask(call).await?;
        let told = reply.headers().get(DIGEST_HEADER);
        match told.and_then(|told| told.to_str().ok()?.parse().ok()) {
            Some(digest) => Ok(digest),
            None => Ok(self.manifest(name).await?.1),
        }
    }

    /// The index of what refers to a manifest (OCI distribution specification 1.1, "listing referrers").
    pub(crate) async fn referrers(&self, digest: &str) -> Result<Vec<u8>, PullError> {
        let kind = "application/vnd.oci.image.index.v1+json";
        self.get(&format!("referrers/{digest}"), kind).await
    }

    /// A blob of known length that fits into memory, verified.
    pub(crate) async fn small_blob(&self, digest: &ImageDigest, size_bytes: usize) -> Result<Vec<u8>, PullError> {
        let mut body = self.blob(digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.stream.next().await {
            let piece = piece.map_err(|error| self.unreachable(Box::new(error)))?;
            if bytes.len() + piece.len() > size_bytes {
                return Err(PullError::TooLong {
                    digest: digest.clone(),
                    expected_bytes: size_bytes as u64,
                });
            }
            bytes.extend_from_slice(&piece);
        }
        let found = ImageDigest::of(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        Err(PullError::DigestMismatch {
            subject: "blob".to_owned(),
            expected: digest.clone(),
            found,
        })
    }

    /// Asks for a blob from `offset` on. The caller checks length and digest.
    pub(crate) async fn blob(&self, digest: &ImageDigest, offset: u64) -> Result<BlobBody, PullError> {
        let mut call = self.question(Method::GET, &format!("blobs/{digest}"), "*/*")?;
        if offset > 0 {
            call.headers.insert(RANGE, header(&format!("bytes={offset}-"))?);
        }
        let reply = self.ask(call).await.map_err(|error| match error {
            PullError::NotFound(_) => self.manifest_problem(format!("the registry lacks its blob {digest}")),
            error => error,
        })?;
        let continued = reply.status().as_u16() == 206;
        if continued && first_byte(reply.headers()) != Some(offset) {
            return Err(self.bad_answer("it sends another range of a blob than it was asked for"));
        }
        let pieces = stream::try_unfold(reply, |mut reply| async {
            let piece = reply.next_piece().await?;
            Ok::<_, SourceError>(piece.map(|piece| (piece, reply)))
        });
        Ok(BlobBody {
            continued: continued || offset == 0,
            stream: pieces.map_err(io::Error::other).boxed(),
        })
    }

    async fn get(&self, path: &str, accept: &str) -> Result<Vec<u8>, PullError> {
        let reply = self.ask(self.question(Method::GET, path, accept)?).await?;
        reply.bytes(MANIFEST_MAX).await.map_err(|error| match error {
            SourceError::Answer { .. } => self.manifest_problem(format!("it is longer than {MANIFEST_MAX} bytes")),
            error => self.explain(error),
        })
    }

    fn question(&self, method: Method, path: &str, accept: &str) -> Result<Call, PullError> {
        let mut call = Call::new(method, self.place(path)?);
        call.headers.insert(ACCEPT, header(accept)?);
        Ok(call)
    }

    /// The URL of `path` below the repository.
    pub(crate) fn place(&self, path: &str) -> Result<Url, PullError> {
        // A tag may begin like a scheme; behind a dot it does not.
        let place = self.base.join(&format!("./{path}"));
        place.map_err(|error| self.manifest_problem(format!("{path:?} is no place in a registry: {error}")))
    }

    /// Asks; tells who asks if the registry wants to know. The answer is a success.
    pub(crate) async fn ask(&self, mut call: Call) -> Result<Reply, PullError> {
        let at_home = call.url.origin() == self.base.origin();
        let known = self.secret.lock().await.clone();
        call.authorization = known.filter(|_| at_home);
        let agent = if at_home { &self.home } else { &self.guarded };
        let send = async |call: &Call| {
            let sent = agent.call(call, &self.guarded).await;
            sent.map_err(|error| self.explain(error))
        };
        let mut reply = send(&call).await?;
        // Who is elsewhere, behind a redirect too, has no say in where credentials go.
        if reply.status().as_u16() == 401 && reply.url().origin() == self.base.origin() {
            let Some(challenge) = Challenge::of(reply.headers()) else {
                return Err(self.status(401));
            };
            call.authorization = Some(self.authenticate(challenge, call.authorization.as_ref()).await?);
            reply = send(&call).await?;
        }
        reply.success().await.map_err(|error| self.explain(error))
    }

    /// What to show to the registry that gave this challenge, although it was shown `before`.
    async fn authenticate(&self, challenge: Challenge, before: Option<&HeaderValue>) -> Result<HeaderValue, PullError> {
        let basic = match &self.login {
            Some(Login { user, password }) => Some(header(&format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            ))?),
            None => None,
        };
        let mut secret = self.secret.lock().await;
        if let Some(known) = &*secret
            && before != Some(known)
        {
            // Somebody else did it meanwhile.
            return Ok(known.clone());
        }
        let shown = match challenge {
            Challenge::Basic => basic
                .filter(|basic| before != Some(basic))
                .ok_or_else(|| self.status(401))?,
            Challenge::Bearer { realm, service } => self.token(&realm, service.as_deref(), basic).await?,
        };
        *secret = Some(shown.clone());
        Ok(shown)
    }

    /// A token for what is intended.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        basic: Option<HeaderValue>,
    ) -> Result<HeaderValue, PullError> {
        let bad_realm = |problem: String| PullError::Denied {
            registry: self.reference.registry().to_owned(),
            source: Box::new(BadRealm {
                realm: realm.chars().take(200).collect(),
                problem,
            }),
        };
        let mut url = Url::parse(realm).map_err(|error| bad_realm(format!("which is no URL: {error}")))?;
        let agent = self
            .agent_of_realm(&url)
            .map_err(|problem| bad_realm(problem.to_owned()))?;
        let scope = format!("repository:{}:{}", self.reference.repository(), self.intent.actions());
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &scope);
        let mut call = Call::new(Method::GET, url);
        call.authorization = basic;
        let reply = agent.call(&call, &self.guarded).await;
        let reply = reply.map_err(|error| self.explain(error))?.success().await;
        let body = reply.map_err(|error| self.explain(error))?.bytes(TOKEN_MAX).await;
        let body = body.map_err(|error| self.explain(error))?;
        // The error of the parser could cite a token.
        let token = serde_json::from_slice::<TokenBody>(&body)
            .ok()
            .and_then(|body| body.token.or(body.access_token))
            .filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| self.bad_answer("its token service gives no token"))?;
        header(&format!("Bearer {token}")).map_err(|_| self.bad_answer("its token service gives what is no token"))
    }

    /// Who may ask the token service at `url`, to which credentials go.
    fn agent_of_realm(&self, url: &Url) -> Result<&Agent, &'static str> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("which brings credentials of its own");
        }
        match url.scheme() {
            "https" => Ok(&self.guarded),
            "http" if !self.plain_http => Err("where credentials would go over plain http"),
            "http" if url.host() == self.base.host() => Ok(&self.home),
            "http" if self.lists(url) => Ok(&self.home),
            "http" => Err("which is another host over plain http; add it to insecure_registries if it is meant"),
            _ => Err("which is neither https nor http"),
        }
    }

    fn lists(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let name = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        self.insecure_registries.contains(&name)
    }

    /// A complaint about this image's manifest.
    pub(crate) fn manifest_problem(&self, problem: impl Into<String>) -> PullError {
        PullError::Manifest {
            reference: self.reference.to_string(),
            problem: problem.into(),
        }
    }

    /// A complaint about the registry.
    pub(crate) fn bad_answer(&self, problem: &str) -> PullError {
        PullError::BadAnswer {
            registry: self.reference.registry().to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn status(&self, status: u16) -> PullError {
        match status {
            401 | 403 => PullError::Unauthorized(self.reference.to_string()),
            404 | 410 => PullError::NotFound(self.reference.to_string()),
            status => PullError::Status {
                registry: self.reference.registry().to_owned(),
                status,
            },
        }
    }

    fn unreachable(&self, source: Cause) -> PullError {
        let registry = self.reference.registry().to_owned();
        let hint = if self.plain_http {
            "it is in insecure_registries, so plain http was spoken; check that it runs, then pull again".to_owned()
        } else {
            format!(
                "check that it runs and is reachable over https, then pull again; \
                 if it speaks plain http, add {registry:?} to insecure_registries in the configuration"
            )
        };
        PullError::Unreachable { registry, hint, source }
    }

    pub(crate) fn explain(&self, error: SourceError) -> PullError {
        let registry = || self.reference.registry().to_owned();
        match error {
            SourceError::Unauthorized { status, .. }
            | SourceError::NotFound { status, .. }
            | SourceError::Status { status, .. } => self.status(status),
            SourceError::Refused { .. } | SourceError::Redirect { .. } => PullError::Denied {
                registry: registry(),
                source: Box::new(error),
            },
            // Not of a token server or, after a redirect, of a blob store.
            SourceError::Tls {
                fault: TlsFault::NoTls,
                ref url,
                ..
            } if url.starts_with(self.base.as_str()) => PullError::Insecure {
                registry: registry(),
                source: Box::new(error),
            },
            SourceError::Answer { problem, .. } => self.bad_answer(&problem),
            error => self.unreachable(Box::new(error)),
        }
    }
}

/// The value of a header, which a name that was checked is always fit for.
pub(crate) fn header(text: &str) -> Result<HeaderValue, PullError> {
    HeaderValue::from_str(text).map_err(|_| PullError::BadAnswer {
        registry: "the registry".to_owned(),
        problem: "it gives a name that cannot be sent back".to_owned(),
    })
}

/// The first byte of the range that an answer has: `bytes 5-9/10`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
