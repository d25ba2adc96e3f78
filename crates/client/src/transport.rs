//! Requests over the socket, and what their answers mean.

use std::path::PathBuf;

use api_types::{Health, ProblemBody};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::HeaderName;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::error::ClientError;
use crate::remote::Remote;

/// Where the daemon listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/karat/karat.sock";

/// Most bytes of an answer. A daemon on another host may be anybody's.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A daemon that can be asked. Each request takes a connection of its own: on a UNIX socket that costs next to nothing, and nothing
/// has to be kept alive or found dead.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
}

/// Where a daemon is.
#[derive(Debug, Clone)]
enum Place {
    /// On this host, at this socket.
    Here(PathBuf),
    /// On another one.
    There(Remote),
}

/// What requests go over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// For the daemon that listens on `socket`; nothing is sent yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let place = Place::Here(socket.into());
        Self { place }
    }

    /// For a daemon on another host, over TLS; nothing is sent yet.
    pub const fn remote(remote: Remote) -> Self {
        let place = Place::There(remote);
        Self { place }
    }

    /// Whether the daemon is there.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/healthz").await
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        json(path, &self.send(Method::GET, path, None).await?)
    }

    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| unexpected(path, error))?;
        json(path, &self.send(Method::POST, path, Some(body)).await?)
    }

    /// Sends a merge patch (RFC 7396).
    pub(crate) async fn patch<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| unexpected(path, error))?;
        json(path, &self.send(Method::PATCH, path, Some(body)).await?)
    }

    pub(crate) async fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| unexpected(path, error))?;
        json(path, &self.send(Method::PUT, path, Some(body)).await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None).await.map(drop)
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.send(Method::GET, path, None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A connection to the daemon.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match &self.place {
            Place::Here(socket) => match UnixStream::connect(socket).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(ClientError::Unreachable {
                    socket: socket.clone(),
                    source: error.into(),
                }),
            },
            Place::There(remote) => Ok(Box::new(remote.connect().await?)),
        }
    }

    /// Deletes, and reads what the answer holds.
    pub(crate) async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        json(path, &self.send(Method::DELETE, path, None).await?)
    }

    /// Sends a body of any kind, and reads what the answer holds.
    pub(crate) async fn exchange<T, B>(
        &self,
        method: Method,
        path: &str,
        headers: Vec<(HeaderName, String)>,
        body: B,
    ) -> Result<T, ClientError>
    where
        T: DeserializeOwned,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "karat");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|error| unexpected(path, error))?;
        json(path, &self.answer(path, request).await?)
    }

    /// The body of a successful answer; anything else is an error.
    async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "karat");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| unexpected(path, error))?;
        self.answer(path, request).await
    }

    async fn answer<B>(&self, path: &str, request: Request<B>) -> Result<Bytes, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let bytes = body.collect().await.map_err(ClientError::Broken)?.to_bytes();
            Ok((status, bytes))
        };
        // The connection does the work while the exchange waits; it ends by itself when the sender is gone.
        let driven = async {
            // What breaks a connection breaks the exchange on it, which tells.
            _ = connection.await;
            std::future::pending::<()>().await;
        };
        let (status, bytes) = tokio::select! {
            result = exchange => result?,
            () = driven => return Err(unexpected(path, "the connection has no end")),
        };
        if status.is_success() {
            return Ok(bytes);
        }
        let problem: ProblemBody = json(path, &bytes)?;
        Err(ClientError::Refused(Box::new(problem)))
    }
}

fn broken(error: hyper::Error) -> ClientError {
    ClientError::Broken(error.into())
}

fn unexpected(path: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Unexpected {
        what: path.to_owned(),
        source: Some(error.into()),
    }
}

fn json<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| unexpected(path, error))
}

/// One segment of a path: everything outside RFC 3986's unreserved characters is percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                encoded.push('%');
                encoded.push(char::from(HEX[usize::from(byte >> 4)]));
                encoded.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stays_one_segment() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(
            segment("host:5000/debian@sha256:00"),
            "host%3A5000%2Fdebian%40sha256%3A00"
        );
        assert_eq!(segment("../ä?#"), "..%2F%C3%A4%3F%23");
    }
}
