//! A daemon on another host: TLS 1.3, at which both sides show a certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{ClientError, RemoteError};

/// How long the other host has to answer and to prove who it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a URL of a daemon begins with.
const SCHEME: &str = "https://";

/// Files with what proves who is who, in PEM (RFC 7468). They are read anew for each connection, so that certificates can be renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may have signed the other side's certificate.
    pub ca: PathBuf,
    /// The own certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where a daemon is, and how it is known.
#[derive(Debug, Clone)]
pub struct Remote {
    url: String,
    name: ServerName<'static>,
    host: String,
    port: u16,
    files: TlsFiles,
}

impl Remote {
    /// The daemon at `https://HOST:PORT`. The host must be in the daemon's certificate. The files are read when they are needed.
    pub fn new(url: &str, files: TlsFiles) -> Result<Self, RemoteError> {
        let malformed = || RemoteError::Url(url.to_owned());
        let place = url.strip_prefix(SCHEME).map(|rest| rest.trim_end_matches('/'));
        let (host, port) = place.and_then(|place| place.rsplit_once(':')).ok_or_else(malformed)?;
        // An IPv6 address is in brackets (RFC 3986 §3.2.2).
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Ok(Self {
            url: url.to_owned(),
            name: ServerName::try_from(host.to_owned()).map_err(|_| malformed())?,
            host: host.to_owned(),
            port: port.parse().map_err(|_| malformed())?,
            files,
        })
    }

    /// As it was written.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The host in it: a name or an address.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>, ClientError> {
        let files = self.files.clone();
        let config = tokio::task::spawn_blocking(move || config(&files)).await;
        let config = config
            .map_err(|lost| self.unreachable(io::Error::other(lost)))?
            .map_err(ClientError::Credentials)?;
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config))
                .connect(self.name.clone(), stream)
                .await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.unreachable(error)),
            Err(_) => Err(self.unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        ClientError::RemoteUnreachable {
            url: self.url.clone(),
            source: error.into(),
        }
    }
}

fn config(files: &TlsFiles) -> Result<ClientConfig, RemoteError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.ca)? {
        roots.add(root).map_err(RemoteError::Unfit)?;
    }
    let own = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| RemoteError::File {
        path: files.key.clone(),
        what: "a private key",
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(RemoteError::Unfit)?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, key)
        .map_err(RemoteError::Unfit)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
    let failed = |source| RemoteError::File {
        path: path.to_owned(),
        what: "certificates",
        source,
    };
    let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(RemoteError::Empty(path.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_with_a_host_and_a_port_are_taken() {
        let files = TlsFiles {
            ca: "/ca".into(),
            certificate: "/cert".into(),
            key: "/key".into(),
        };
        let read = |url: &str| Remote::new(url, files.clone()).map(|remote| (remote.host, remote.port));
        assert_eq!(
            read("https://host-b.example:7443/").unwrap(),
            ("host-b.example".to_owned(), 7443)
        );
        assert_eq!(read("https://[fd00::1]:7443").unwrap(), ("fd00::1".to_owned(), 7443));
        for wrong in [
            "http://h:1",
            "https://h",
            "https://h:x",
            "https://:1",
            "h:1",
            "https://h/p:1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
