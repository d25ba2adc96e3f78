//! A registry of a few routes on loopback that can misbehave on demand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use images::{ImageDigest, Reference, Settings};

/// First byte of a TLS record that opens a connection (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

/// One way to misbehave; applies to one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// This status instead of an answer.
    Status(u16),
    /// The connection ends after this many bytes of the body.
    Drop(usize),
    /// The last byte of the body is wrong.
    Corrupt,
    /// The whole body, whatever range was asked for.
    IgnoreRange,
    /// More bytes than the manifest states.
    Longer,
    /// This many bytes, then silence for ten seconds.
    Stall(usize),
}

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, Vec<Fault>>,
    requests: Vec<(String, Option<u64>)>,
    has_tags: bool,
}

/// The stub; serves until the process ends.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) host: String,
    state: Arc<Mutex<State>>,
}

/// A layer to be pushed: media type and bytes.
pub(crate) type Layer = (&'static str, Vec<u8>);

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

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

    pub(crate) fn settings(&self, root: &std::path::Path) -> Settings {
        Settings {
            insecure_registries: vec![self.host.clone()],
            ..crate::settings(root)
        }
    }

    /// From now on answers bear entity tags. What is served never changes: its path is as good as any.
    pub(crate) fn tag(&self) {
        self.state.lock().unwrap().has_tags = true;
    }

    /// The same blob as an object on a web server.
    pub(crate) fn url(&self, digest: &ImageDigest) -> String {
        format!("http://{}{}", self.host, blob_path(digest))
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }

    /// Puts an image under `demo:TAG`; returns its manifest's digest.
    pub(crate) fn push(&self, tag: &str, layers: &[Layer], labels: &str) -> ImageDigest {
        let config = format!("{{\"config\":{{\"Labels\":{{{labels}}}}}}}");
        let config = self.push_blob(config.as_bytes());
        let layers: Vec<String> = layers
            .iter()
            .map(|(kind, bytes)| {
                let digest = self.push_blob(bytes);
                format!(
                    "{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":{}}}",
                    bytes.len()
                )
            })
            .collect();
        let size = self.get(&blob_path(&config)).len();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\
             \"digest\":\"{config}\",\"size\":{size}}},\"layers\":[{}]}}",
            layers.join(",")
        );
        self.push_manifest(tag, "application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    pub(crate) fn push_manifest(&self, tag: &str, kind: &str, body: &str) -> ImageDigest {
        let digest = ImageDigest::of(body.as_bytes());
        for name in [tag, &digest.to_string()] {
            self.put(&format!("/v2/demo/manifests/{name}"), kind, body.as_bytes());
        }
        digest
    }

    pub(crate) fn push_blob(&self, bytes: &[u8]) -> ImageDigest {
        let digest = ImageDigest::of(bytes);
        self.put(&blob_path(&digest), "application/octet-stream", bytes);
        digest
    }

    fn put(&self, path: &str, kind: &str, bytes: &[u8]) {
        let content = (kind.to_owned(), bytes.to_vec());
        self.state.lock().unwrap().content.insert(path.to_owned(), content);
    }

    fn get(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().content[path].1.clone()
    }

    /// The next requests of `path` go wrong, one after the other.
    pub(crate) fn misbehave(&self, path: &str, faults: &[Fault]) {
        let mut faults = faults.to_vec();
        faults.reverse();
        self.state.lock().unwrap().faults.insert(path.to_owned(), faults);
    }

    /// Offsets asked for so far of `path`.
    pub(crate) fn requests(&self, path: &str) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        let of_path = state.requests.iter().filter(|(asked, _)| asked == path);
        of_path.map(|(_, offset)| offset.unwrap_or(0)).collect()
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
            // What servers of plain HTTP answer to one who speaks TLS.
            return (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        }
        let mut lines = reader.lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut offset = None;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                offset = range.trim_end_matches('-').parse().ok();
            }
        }
        let (found, fault, tag) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push((path.clone(), offset));
            let fault = state.faults.get_mut(&path).and_then(Vec::pop);
            let tag = if state.has_tags {
                format!("etag: \"{path}\"\r\n")
            } else {
                String::new()
            };
            (state.content.get(&path).cloned(), fault, tag)
        };
        respond(stream, &path, found, offset, fault, &tag)
    }
}

fn respond(
    mut out: TcpStream,
    path: &str,
    found: Option<(String, Vec<u8>)>,
    offset: Option<u64>,
    fault: Option<Fault>,
    tag: &str,
) -> std::io::Result<()> {
    let plain = |status: u16| format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let (kind, mut body) = match (found, fault) {
        (_, Some(Fault::Status(status))) => return out.write_all(plain(status).as_bytes()),
        (Some(found), _) => found,
        (None, _) if path == "/v2/" => return out.write_all(plain(200).as_bytes()),
        (None, _) => return out.write_all(plain(404).as_bytes()),
    };
    let whole = body.len();
    let offset = offset.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let status = match offset {
        Some(offset) => {
            body.drain(..usize::try_from(offset).unwrap().min(body.len()));
            206
        }
        None => 200,
    };
    match fault {
        Some(Fault::Corrupt) => *body.last_mut().unwrap() ^= 1,
        Some(Fault::Longer) => body.push(0),
        _ => {}
    }
    let length = body.len();
    let range = match offset {
        Some(from) => format!(
            "content-range: bytes {from}-{}/{whole}\r\n",
            (whole as u64).saturating_sub(1)
        ),
        None => String::new(),
    };
    write!(
        out,
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
         {tag}{range}\r\n"
    )?;
    match fault {
        Some(Fault::Drop(count)) => out.write_all(&body[..count.min(length)]),
        Some(Fault::Stall(count)) => {
            out.write_all(&body[..count.min(length)])?;
            out.flush()?;
            std::thread::sleep(Duration::from_secs(10));
            Ok(())
        }
        _ => out.write_all(&body),
    }
}

pub(crate) fn blob_path(digest: &ImageDigest) -> String {
    format!("/v2/demo/blobs/{digest}")
}

/// A tar archive of these files.
pub(crate) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
