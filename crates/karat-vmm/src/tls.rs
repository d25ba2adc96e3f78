//! TLS of a migration's streams: version 1.3 only, both sides known by exactly one certificate each, which were made for this
//! migration and are compared byte for byte. No name, date or authority has a say.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::LinkCredentials;
use migration::Link;
use rustix::io::Errno;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerConfig, ServerConnection};
use rustls::version::TLS13;
use rustls::{CertificateError, Connection, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::socket::Socket;

/// Longest handshake. Whoever connects and says nothing keeps others from coming in for so long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes that are encrypted at once: what a record takes, some times.
const PIECE: usize = 64 << 10;
/// Name that a client has to give; nobody looks at it.
const NAME: &str = "karat-migration";

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The listening socket is none.
    #[error("the socket to listen on for the migration can not be used")]
    Listener(#[source] Errno),
    /// Certificate or key.
    #[error("the certificate or key for the streams of the migration can not be used")]
    Credentials(#[source] Error),
}

/// Knows one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if *shown == self.certificate {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }
}

/// There is no version before 1.3 here.
fn too_old() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// One side's credentials, taken apart.
struct Own {
    provider: Arc<CryptoProvider>,
    peer: Arc<Pinned>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Own {
    fn new(credentials: &LinkCredentials) -> Self {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let certificate = |blob: &control::Blob| CertificateDer::from(blob.0.clone());
        Self {
            provider,
            peer: Arc::new(Pinned {
                certificate: certificate(&credentials.peer_certificate_der),
                algorithms,
            }),
            chain: vec![certificate(&credentials.certificate_der)],
            key: PrivatePkcs8KeyDer::from(credentials.key_der.0.clone()),
        }
    }
}

/// The side that connects: the source.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

impl Client {
    pub(crate) fn new(credentials: &LinkCredentials) -> Result<Self, TlsError> {
        let own = Own::new(credentials);
        let config = ClientConfig::builder_with_provider(own.provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(own.peer)
                    .with_client_auth_cert(own.chain, own.key.into())
            });
        let mut config = config.map_err(TlsError::Credentials)?;
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }
}

/// The side that is connected to: the target.
#[derive(Clone)]
pub(crate) struct Server(Arc<ServerConfig>);

impl Server {
    pub(crate) fn new(credentials: &LinkCredentials) -> Result<Self, TlsError> {
        let own = Own::new(credentials);
        let config = ServerConfig::builder_with_provider(own.provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(own.peer)
                    .with_single_cert(own.chain, own.key.into())
            });
        let mut config = config.map_err(TlsError::Credentials)?;
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }
}

/// An encrypted stream. Reader and writer work side by side: the one lock that both take is never held over a call that waits,
/// and records leave in the order in which they were made, as only the writer sends.
pub(crate) struct Tls {
    socket: Socket,
    session: Arc<Mutex<Connection>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn lock(session: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Tls {
    pub(crate) fn connect(client: &Client, socket: Socket) -> io::Result<Self> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(&client.0), name).map_err(refused)?;
        Self::shake_hands(session.into(), socket)
    }

    pub(crate) fn accept(server: &Server, socket: Socket) -> io::Result<Self> {
        let session = ServerConnection::new(Arc::clone(&server.0)).map_err(refused)?;
        Self::shake_hands(session.into(), socket)
    }

    fn shake_hands(mut session: Connection, mut socket: Socket) -> io::Result<Self> {
        socket.wait_at_most(Some(HANDSHAKE))?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        socket.wait_at_most(None)?;
        session.set_buffer_limit(None);
        Ok(Self {
            socket,
            session: Arc::new(Mutex::new(session)),
        })
    }

    pub(crate) fn into_link(self) -> Link {
        let Self { socket, session } = self;
        let ends = socket.clone();
        Link {
            reader: Box::new(Reader {
                socket: socket.clone(),
                session: Arc::clone(&session),
                received: vec![0; PIECE],
                unread: 0..0,
            }),
            writer: Box::new(Writer {
                socket,
                session,
                records: Vec::new(),
            }),
            hang_up: Arc::new(move || ends.hang_up()),
        }
    }
}

struct Reader {
    socket: Socket,
    session: Arc<Mutex<Connection>>,
    received: Vec<u8>,
    /// What of it was not deciphered yet.
    unread: std::ops::Range<usize>,
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut session = lock(&self.session);
            match session.reader().read(bytes) {
                // What follows is not there yet.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if self.unread.is_empty() {
                drop(session);
                let count = self.socket.read(&mut self.received)?;
                self.unread = 0..count;
                if count == 0 {
                    return Ok(0);
                }
                continue;
            }
            let mut rest = self.received.get(self.unread.clone()).unwrap_or_default();
            self.unread.start += session.read_tls(&mut rest)?;
            session.process_new_packets().map_err(refused)?;
        }
    }
}

struct Writer {
    socket: Socket,
    session: Arc<Mutex<Connection>>,
    records: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        let mut session = lock(&self.session);
        session.writer().write_all(piece)?;
        while session.wants_write() {
            session.write_tls(&mut self.records)?;
        }
        drop(session);
        let sent = self.socket.write_all(&self.records);
        self.records.clear();
        sent.map(|()| piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
