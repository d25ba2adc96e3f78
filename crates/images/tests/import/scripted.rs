//! A server that answers as a test says, over plain HTTP or TLS, and notes what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `GET /path?query`
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl Asked {
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }
}

/// What is answered.
pub(crate) enum Answer {
    /// Status, headers, body.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A body that never ends.
    Endless(u16),
    /// This body, a byte at a time.
    Dripping(u16, Vec<u8>),
    /// Nothing, and nothing is read either.
    Deaf,
}

impl Answer {
    pub(crate) fn redirect(to: &str) -> Self {
        Self::Whole(307, vec![("location", to.to_owned())], Vec::new())
    }

    /// Wants a token of `realm`.
    pub(crate) fn challenge(realm: &str) -> Self {
        let value = format!("Bearer realm=\"{realm}\",service=\"test\"");
        Self::Whole(401, vec![("www-authenticate", value)], Vec::new())
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Whole(200, Vec::new(), body.into())
    }
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// The server; serves until the process ends.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    written: Arc<AtomicU64>,
}

impl Scripted {
    /// Answers by `script`, which is given the server's own `host:port` when it is made.
    pub(crate) fn start<S: Fn(&Asked) -> Answer + Send + Sync + 'static>(script: impl FnOnce(&str) -> S) -> Self {
        Self::serve(None, script)
    }

    /// The same with a certificate for 127.0.0.1; returns that of its authority too.
    pub(crate) fn start_tls<S: Fn(&Asked) -> Answer + Send + Sync + 'static>(
        script: impl FnOnce(&str) -> S,
    ) -> (Self, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let server = Self::serve(Some(Arc::new(config)), script);
        (server, authority.pem().into_bytes())
    }

    fn serve<S: Fn(&Asked) -> Answer + Send + Sync + 'static>(
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl FnOnce(&str) -> S,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            host: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
            written: Arc::default(),
        };
        let script: Arc<Script> = Arc::new(script(&server.host));
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (serving, stream) = (serving.clone(), stream.unwrap());
                let (script, tls) = (Arc::clone(&script), tls.clone());
                std::thread::spawn(move || {
                    // The client may leave early.
                    let _ = match tls {
                        None => serving.answer(stream, &*script),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            serving.answer(rustls::StreamOwned::new(connection, stream), &*script)
                        }
                    };
                });
            }
        });
        server
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Bytes of endless bodies that were taken from it.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn answer(&self, stream: impl Read + Write, script: &Script) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut headers = HashMap::new();
        loop {
            let mut text = String::new();
            reader.read_line(&mut text)?;
            let Some((name, value)) = text.trim_end().split_once(": ") else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let line = line
            .rsplit_once(" HTTP")
            .map_or(String::new(), |(line, _)| line.to_owned());
        let asked = Asked { line, headers };
        self.asked.lock().unwrap().push(asked.clone());
        let answer = script(&asked);
        if matches!(answer, Answer::Deaf) {
            std::thread::sleep(Duration::from_secs(20));
            return Ok(());
        }
        let length = asked.headers.get("content-length");
        let length = length.map_or(0, |length| length.parse().unwrap());
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        self.write(reader.get_mut(), answer)
    }

    fn write(&self, out: &mut impl Write, answer: Answer) -> std::io::Result<()> {
        let head = |status: u16, length: &str| format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}\r\n");
        match answer {
            Answer::Whole(status, headers, body) => {
                let mut lines = format!("content-length: {}\r\n", body.len());
                for (name, value) in headers {
                    lines.push_str(&format!("{name}: {value}\r\n"));
                }
                out.write_all(head(status, &lines).as_bytes())?;
                out.write_all(&body)?;
            }
            Answer::Endless(status) => {
                out.write_all(head(status, "content-type: application/xml\r\n").as_bytes())?;
                let piece = [b'x'; 4096];
                loop {
                    out.write_all(&piece)?;
                    self.written.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            }
            Answer::Dripping(status, body) => {
                let length = format!("content-length: {}\r\n", body.len());
                out.write_all(head(status, &length).as_bytes())?;
                for byte in body {
                    out.write_all(&[byte])?;
                    out.flush()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            Answer::Deaf => {}
        }
        out.flush()
    }
}
