//! The API for other hosts: TLS 1.3, at which both sides show a certificate. Whoever has one that the operator's authority signed
//! may do everything that root may do here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::{Extension, Router};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::limits::{CONNECTIONS_MAX, HEADER_TIMEOUT};
use crate::serve::{ACCEPT_PAUSE, Closing, connection};

/// Files with what proves who is who, in PEM (RFC 7468).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The daemon's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that may have signed the certificates of those who connect.
    pub client_ca: PathBuf,
}

/// Why TLS can not be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can not be read, or holds something else.
    #[error("{path:?} can not be read as PEM with {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not fit the certificate, or either is of a kind that is not used.
    #[error("the certificate and its key can not be used")]
    Unfit(#[source] rustls::Error),
    /// The authorities can not be used.
    #[error("{path:?} holds no authority that can be used")]
    Authorities {
        /// Their file.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
}

/// Somebody on another host, who has shown a certificate that was accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemotePeer;

/// What is needed to serve; clones are the same.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl TlsSettings {
    /// Reads the files. Blocks shortly.
    pub fn load(&self) -> Result<Tls, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.client_ca)? {
            roots.add(root).map_err(TlsError::Unfit)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authorities {
                path: self.client_ca.clone(),
                source,
            })?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::File {
            path: self.key.clone(),
            what: "a private key",
            source,
        })?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(TlsError::Unfit)?;
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Serves `router` on `listener` until `closing` begins, then waits for the requests under way. Its connections are counted apart
/// from those on the socket: nobody on the network can keep the host's own people out.
pub async fn serve_tls(listener: TcpListener, tls: Tls, router: Router, closing: Closing) {
    let tracker = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let router = router.layer(Extension(RemotePeer));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let seat = Arc::clone(&room).acquire_owned().await.ok()?;
                Some((listener.accept().await, seat))
            } => accepted,
            () = closing.begun() => break,
        };
        let (stream, address, seat) = match accepted {
            Some((Ok((stream, address)), seat)) => (stream, address, seat),
            Some((Err(error), _)) => {
                tracing::error!(%error, "connection can not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            None => break,
        };
        let secured = secured(
            stream,
            address,
            tls.clone(),
            router.clone(),
            closing.clone(),
            tracker.clone(),
        );
        tracker.spawn(async move {
            secured.await;
            drop(seat);
        });
    }
    tracker.close();
    tracker.wait().await;
}

async fn secured(
    stream: TcpStream,
    address: SocketAddr,
    Tls(acceptor): Tls,
    router: Router,
    closing: Closing,
    tracker: TaskTracker,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "small answers may be late");
    }
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HEADER_TIMEOUT, acceptor.accept(stream)) => shaken,
        () = closing.begun() => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(stream, router, closing, tracker).await,
        Ok(Err(error)) => tracing::warn!(%address, %error, "connection refused: no certificate that is accepted"),
        Err(_) => tracing::debug!(%address, "whoever connected did not say who it is"),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File {
        path: path.to_owned(),
        what: "certificates",
        source,
    };
    let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
    read.collect::<Result<Vec<_>, _>>().map_err(failed)
}
