//! A registry of container disks on loopback: enough of the protocol to be pulled from.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// First byte of a TLS record that opens a connection (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A container image.
pub(crate) struct Container {
    pub(crate) manifest: String,
    /// Its layer and its configuration.
    pub(crate) blobs: [Vec<u8>; 2],
}

/// A container image with these files in one layer.
pub(crate) fn container(files: &[(&str, Vec<u8>)]) -> Container {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, &bytes[..]).unwrap();
    }
    let (layer, config) = (archive.into_inner().unwrap(), b"{\"config\":{}}".to_vec());
    let part = |kind: &str, blob: &[u8]| {
        let (digest, size) = (digest(blob), blob.len());
        format!("{{\"mediaType\":\"application/vnd.oci.image.{kind}\",\"digest\":\"{digest}\",\"size\":{size}}}")
    };
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST}\",\"config\":{},\"layers\":[{}]}}",
        part("config.v1+json", &config),
        part("layer.v1.tar", &layer)
    );
    Container {
        manifest,
        blobs: [layer, config],
    }
}

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    requests: Vec<String>,
    is_down: bool,
    held: bool,
}

/// The registry; serves until the process ends.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) host: String,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            host: listener.local_addr().unwrap().to_string(),
            state: Arc::default(),
        };
        let serving = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (serving, stream) = (serving.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    let _ = serving.answer(stream); // The client may leave early.
                });
            }
        });
        registry
    }

    /// Lines of configuration with which a daemon pulls from here.
    pub(crate) fn config(&self) -> String {
        format!("reserved_space = 0\ninsecure_registries = [{:?}]\n", self.host)
    }

    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("{}/demo:{tag}", self.host)
    }

    /// Puts a container disk of 64 KiB under a tag, all bytes `fill`, with a kernel; returns its manifest's digest.
    pub(crate) fn push(&self, tag: &str, fill: u8) -> String {
        let disk = vec![fill; 64 << 10];
        self.push_files(tag, &[("disk/x.raw", disk), ("boot/vmlinuz", b"kernel".to_vec())])
    }

    fn push_files(&self, tag: &str, files: &[(&str, Vec<u8>)]) -> String {
        let image = container(files);
        for blob in &image.blobs {
            let path = format!("/v2/demo/blobs/{}", digest(blob));
            self.put(&path, "application/octet-stream", blob);
        }
        let digest = digest(image.manifest.as_bytes());
        for name in [tag, &digest] {
            self.put(
                &format!("/v2/demo/manifests/{name}"),
                MANIFEST,
                image.manifest.as_bytes(),
            );
        }
        digest
    }

    /// Puts an image without a disk under a tag.
    pub(crate) fn push_without_disk(&self, tag: &str) -> String {
        self.push_files(tag, &[("boot/vmlinuz", b"kernel".to_vec())])
    }

    fn put(&self, path: &str, kind: &str, bytes: &[u8]) {
        let content = (kind.to_owned(), bytes.to_vec());
        self.state.lock().unwrap().content.insert(path.to_owned(), content);
    }

    /// From now on every answer is 503, or what it should be.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.lock().unwrap().is_down = is_down;
    }

    /// From now on blobs are not answered, or are.
    pub(crate) fn hold_blobs(&self, held: bool) {
        self.state.lock().unwrap().held = held;
    }

    /// How often blobs were asked for.
    pub(crate) fn blobs_asked(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|path| path.contains("/blobs/")).count()
    }

    /// How often a tag was asked for.
    pub(crate) fn polls(&self, tag: &str) -> usize {
        let path = format!("/v2/demo/manifests/{tag}");
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|asked| **asked == path).count()
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let plain = |status: u16| format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
            // What servers of plain HTTP answer to one who speaks TLS.
            return stream.write_all(plain(400).as_bytes());
        }
        let mut lines = reader.lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (found, is_down) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(path.to_owned());
            (state.content.get(path).cloned(), state.is_down)
        };
        while path.contains("/blobs/") && self.state.lock().unwrap().held {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        match found {
            _ if is_down => stream.write_all(plain(503).as_bytes()),
            None if path == "/v2/" => stream.write_all(plain(200).as_bytes()),
            None => stream.write_all(plain(404).as_bytes()),
            Some((kind, body)) => {
                let (digest, length) = (digest(&body), body.len());
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
                     docker-content-digest: {digest}\r\n\r\n"
                )?;
                match method {
                    "HEAD" => Ok(()),
                    _ => stream.write_all(&body),
                }
            }
        }
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
