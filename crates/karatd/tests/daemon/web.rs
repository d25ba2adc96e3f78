//! A web server and an object store on loopback, as far as imports ask anything of them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;

use crate::registry::digest;

/// Lines of configuration with which a daemon downloads from this host.
pub(crate) const CONFIG: &str =
    "reserved_space = 0\n[images.web]\nallowed_ports = []\nallowed_networks = [\"127.0.0.0/8\"]\n";

/// The web server; serves until the process ends.
#[derive(Clone)]
pub(crate) struct Web {
    host: String,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    gets: Arc<Mutex<Vec<String>>>,
}

impl Web {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            host: listener.local_addr().unwrap().to_string(),
            files: Arc::default(),
            gets: Arc::default(),
        };
        let serving = web.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (serving, stream) = (serving.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    let _ = serving.answer(stream); // The client may leave early.
                });
            }
        });
        web
    }

    /// Serves bytes under a name; returns their URL.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> String {
        self.files.lock().unwrap().insert(format!("/{name}"), bytes.to_vec());
        format!("http://{}/{name}", self.host)
    }

    /// How often bodies were asked for.
    pub(crate) fn gets(&self) -> usize {
        self.gets.lock().unwrap().len()
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let Some(body) = self.files.lock().unwrap().get(path).cloned() else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        };
        let (length, tag) = (body.len(), digest(&body));
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\netag: \"{tag}\"\r\n\r\n"
        )?;
        if method == "GET" {
            self.gets.lock().unwrap().push(path.to_owned());
            stream.write_all(&body)?;
        }
        Ok(())
    }
}

/// Serves a directory's directories as buckets; returns the port. Serves until the process ends.
pub(crate) fn object_store(directory: &Path, key_id: &str, secret: &str) -> u16 {
    let mut service = S3ServiceBuilder::new(FileSystem::new(directory).unwrap());
    service.set_auth(SimpleAuth::from_single(key_id, secret));
    let service = service.build();
    let (told, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap().port()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await; // The client may leave early.
                });
            }
        });
    });
    port.recv().unwrap()
}
