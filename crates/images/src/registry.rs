//! One image in one registry: manifests and blobs over HTTP.
//!
//! `oci-client` authenticates and fetches blobs. Manifests are fetched here, because their length must be bounded before they
//! are in memory.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use reqwest::header::HeaderValue;
use rustls::InvalidMessage;

use crate::credentials::{self, Login};
use crate::error::Cause;
use crate::{ImageDigest, PullError, Reference, Settings};

/// Largest manifest read, bytes: what registries must at least accept (OCI distribution specification 1.1).
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the registry may be silent within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirects followed.
const REDIRECTS_MAX: usize = 5;
/// Media types a manifest may have.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Where a registry tells a manifest's digest (OCI distribution specification 1.1, "pulling manifests").
const DIGEST_HEADER: &str = "docker-content-digest";
const USER_AGENT: &str = concat!("karat/", env!("CARGO_PKG_VERSION"));

/// A registry one image is fetched from.
pub(crate) struct Registry {
    reference: Reference,
    plain_http: bool,
    target: oci_client::Reference,
    client: Client,
    http: reqwest::Client,
    token: Option<String>,
    login: Option<Login>,
}

/// The programs' halves of connections to registries: made once, since the host's certificate authorities are read for them, and
/// kept with what they learn (connections, tokens).
#[derive(Default)]
pub(crate) struct ClientsOfAll(Mutex<HashMap<bool, Clients>>);

#[derive(Clone)]
struct Clients {
    http: reqwest::Client,
    client: Client,
}

impl ClientsOfAll {
    /// Those for registries that speak plain HTTP, or for all others. `host` is whom it is about.
    fn of(&self, plain_http: bool, host: &str) -> Result<Clients, PullError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = known.get(&plain_http) {
            return Ok(clients.clone());
        }
        let clients = Clients::make(plain_http, host)?;
        known.insert(plain_http, clients.clone());
        Ok(clients)
    }
}

impl Clients {
    fn make(plain_http: bool, host: &str) -> Result<Self, PullError> {
        let set_up = |source: Cause| PullError::Unreachable {
            registry: host.to_owned(),
            hint: "the host knows no certificate authorities: install package ca-certificates".to_owned(),
            source,
        };
        // First this one: without certificate authorities on the host it fails with an error, `oci-client` panics.
        let http = reqwest::Client::builder()
            .https_only(!plain_http)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(USER_AGENT)
            .build()
            .map_err(|source| set_up(Box::new(source)))?;
        let client = Client::try_from(ClientConfig {
            protocol: if plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        })
        .map_err(|source| set_up(Box::new(source)))?;
        Ok(Self { http, client })
    }
}

/// A blob on its way.
pub(crate) struct BlobBody {
    /// True if it begins at the offset asked for; else it begins at 0.
    pub(crate) continued: bool,
    /// Pieces; an error ends it.
    pub(crate) stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
}

impl Registry {
    /// Finds out how to talk to the registry of `reference`, and gets a token for `operation` if it wants one. Plain HTTP is
    /// spoken only to registries the settings name, as host or host:port.
    pub(crate) async fn connect(
        reference: &Reference,
        settings: &Settings,
        clients: &ClientsOfAll,
        operation: RegistryOperation,
    ) -> Result<Self, PullError> {
        install_cryptography();
        let login = match &settings.registry_auth_file {
            Some(path) => credentials::find(path, reference)?,
            None => None,
        };
        let host = reference.registry().to_owned();
        let repository = reference.repository().to_owned();
        let target = match reference.digest() {
            Some(digest) => oci_client::Reference::with_digest(host.clone(), repository, digest.to_string()),
            None => oci_client::Reference::with_tag(host.clone(), repository, reference.manifest_name()),
        };
        let plain_http = settings.insecure_registries.contains(&host);
        // A client keeps who it was first; credentials may change.
        let Clients { http, client } = match &login {
            Some(_) => Clients::make(plain_http, &host)?,
            None => clients.of(plain_http, &host)?,
        };
        let mut registry = Self {
            reference: reference.clone(),
            plain_http,
            target,
            client,
            http,
            token: None,
            login,
        };
        let who = match &registry.login {
            Some(Login { user, password }) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let token = registry.client.auth(&registry.target, &who, operation).await;
        registry.token = token.map_err(|error| registry.explain(error))?;
        Ok(registry)
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
        let path = format!("manifests/{name}");
        let response = self.ask(reqwest::Method::HEAD, &path, &ACCEPTED.join(", ")).await?;
        let told = response.headers().get(DIGEST_HEADER);
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
        use futures_util::StreamExt;
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

    /// An answer of the registry that is a success, for `path` below the repository.
    async fn ask(&self, method: reqwest::Method, path: &str, accept: &str) -> Result<reqwest::Response, PullError> {
        let scheme = if self.plain_http { "http" } else { "https" };
        let host = self.target.resolve_registry();
        let url = format!("{scheme}://{host}/v2/{}/{path}", self.reference.repository());
        let mut request = self.http.request(method, url).header("accept", accept);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        } else if let Some(Login { user, password }) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(Box::new(error)))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.status(response.status().as_u16()))
        }
    }

    async fn get(&self, path: &str, accept: &str) -> Result<Vec<u8>, PullError> {
        let mut response = self.ask(reqwest::Method::GET, path, accept).await?;
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(Box::new(error)))?
        {
            if (body.len() + piece.len()) as u64 > MANIFEST_MAX {
                return Err(self.manifest_problem(format!("it is longer than {MANIFEST_MAX} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Asks for a blob from `offset` on. The caller checks length and digest.
    pub(crate) async fn blob(&self, digest: &ImageDigest, offset: u64) -> Result<BlobBody, PullError> {
        let name = digest.to_string();
        let answer = self
            .client
            .pull_blob_stream_partial(&self.target, name.as_str(), offset, None)
            .await
            .map_err(|error| match self.explain(error) {
                PullError::NotFound(_) => self.manifest_problem(format!("the registry lacks its blob {digest}")),
                error => error,
            })?;
        Ok(match answer {
            BlobResponse::Full(body) => BlobBody {
                continued: offset == 0,
                stream: body.stream,
            },
            BlobResponse::Partial(body) => BlobBody {
                continued: true,
                stream: body.stream,
            },
        })
    }

    /// Sends a blob whose digest comes to be known as it is sent, and returns its descriptor's digest and length.
    pub(crate) async fn push_stream(
        &self,
        pieces: impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static,
    ) -> Result<(String, u64), PullError> {
        let sent = self.client.push_blob_stream_chunked(&self.target, pieces).await;
        let sent = sent.map_err(|error| self.explain(error))?;
        Ok((sent.blob_digest, sent.size))
    }

    /// Sends a small blob.
    pub(crate) async fn push_small(&self, digest: &ImageDigest, bytes: Bytes) -> Result<(), PullError> {
        let name = digest.to_string();
        let sent = self.client.push_blob(&self.target, bytes, &name).await;
        sent.map(drop).map_err(|error| self.explain(error))
    }

    /// Sends a manifest, under the tag of the reference.
    pub(crate) async fn push_manifest(&self, body: Bytes) -> Result<(), PullError> {
        let kind = HeaderValue::from_static(ACCEPTED[0]);
        let sent = self.client.push_manifest_raw(&self.target, body, kind).await;
        sent.map(drop).map_err(|error| self.explain(error))
    }

    /// A complaint about this image's manifest.
    pub(crate) fn manifest_problem(&self, problem: impl Into<String>) -> PullError {
        PullError::Manifest {
            reference: self.reference.to_string(),
            problem: problem.into(),
        }
    }

    fn status(&self, status: u16) -> PullError {
        match status {
            401 | 403 => PullError::Unauthorized(self.reference.to_string()),
            404 => PullError::NotFound(self.reference.to_string()),
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

    /// True for the first URL asked over HTTPS. Others may be of a token server or, after a redirect, of a blob store.
    fn is_first(&self, url: Option<&reqwest::Url>) -> bool {
        let first = format!("https://{}/v2/", self.target.resolve_registry());
        url.is_some() && url == reqwest::Url::parse(&first).ok().as_ref()
    }

    fn explain(&self, error: OciDistributionError) -> PullError {
        match error {
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                self.status(401)
            }
            OciDistributionError::ServerError { code, .. } => self.status(code),
            OciDistributionError::RequestError(error) if self.is_first(error.url()) && is_no_tls(&error) => {
                PullError::Insecure {
                    registry: self.reference.registry().to_owned(),
                    source: Box::new(error),
                }
            }
            OciDistributionError::RegistryError { ref envelope, .. } => {
                use oci_client::errors::OciErrorCode as Code;
                match envelope.errors.first().map(|error| &error.code) {
                    Some(Code::Unauthorized | Code::Denied) => self.status(401),
                    Some(Code::Toomanyrequests) => self.status(429),
                    Some(Code::BlobUnknown | Code::ManifestUnknown | Code::NameUnknown | Code::NotFound) => {
                        self.status(404)
                    }
                    _ => self.unreachable(Box::new(error)),
                }
            }
            error => self.unreachable(Box::new(error)),
        }
    }
}

/// True if `error` comes from a peer whose first bytes were no TLS record: a server of plain HTTP says `HTTP/1.1 400`.
fn is_no_tls(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType));
    }
    // An I/O error made from another error is that error's text; as its source it gives the one below.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match inner {
        Some(inner) => is_no_tls(inner),
        None => error.source().is_some_and(is_no_tls),
    }
}

/// The HTTPS stack is built without a provider of its own; the first one installed in the process serves all.
fn install_cryptography() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the program installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
