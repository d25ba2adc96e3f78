//! Requests over the socket, and what their answers mean.

use std::path::{Path, PathBuf};

use api_types::{Health, ProblemBody};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ClientError;

/// Where the daemon listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/karat/karat.sock";

/// A daemon that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// For the daemon that listens on `socket`; nothing is sent yet.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let socket = socket.into();
        let built = reqwest::Client::builder().unix_socket(socket.clone()).build();
        match built {
            Ok(http) => Ok(Self { http, socket }),
            Err(source) => Err(ClientError::Unreachable {
                socket,
                source: source.into(),
            }),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the daemon is there.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/healthz").await
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        json(path, self.send(Method::GET, path, None::<&()>).await?).await
    }

    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        json(path, self.send(Method::POST, path, Some(body)).await?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Method::GET, path, None::<&()>).await?;
        response.text().await.map_err(|error| ClientError::Broken(error.into()))
    }

    async fn send<B: Serialize>(&self, method: Method, path: &str, body: Option<&B>) -> Result<Response, ClientError> {
        let mut request = self.http.request(method, format!("http://karat{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.not_sent(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        match response.json::<ProblemBody>().await {
            Ok(problem) => Err(ClientError::Refused(Box::new(problem))),
            Err(error) => Err(ClientError::Unexpected {
                what: path.to_owned(),
                source: Some(error.into()),
            }),
        }
    }

    fn not_sent(&self, error: reqwest::Error) -> ClientError {
        if error.is_connect() {
            ClientError::Unreachable {
                socket: self.socket.clone(),
                source: error.into(),
            }
        } else {
            ClientError::Broken(error.into())
        }
    }
}

async fn json<T: DeserializeOwned>(path: &str, response: Response) -> Result<T, ClientError> {
    let bytes = response
        .bytes()
        .await
        .map_err(|error| ClientError::Broken(error.into()))?;
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Unexpected {
        what: path.to_owned(),
        source: Some(error.into()),
    })
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
