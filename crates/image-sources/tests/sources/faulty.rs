//! An HTTP server that does what it is told, and counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: HashMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte asked for; none without a range.
    pub(crate) fn start(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?;
        range.parse().ok()
    }
}

/// What to answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Closes after that many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// Sends that many bytes (of head and body), then waits, again and again.
    pub(crate) pace: Option<(usize, Duration)>,
    /// Keeps silent instead of closing at the cut.
    pub(crate) stall: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        let length = ("content-length".to_owned(), body.len().to_string());
        Self {
            status,
            headers: vec![length],
            body: body.to_vec(),
            cut_after: None,
            pace: None,
            stall: false,
        }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(302, b"elsewhere").header("location", to)
    }

    /// Sets a header, in place of one of that name; an empty value takes it away.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut_after = Some(after);
        self
    }

    pub(crate) fn stalling(mut self, after: usize) -> Self {
        self.stall = true;
        self.cut(after)
    }

    pub(crate) fn paced(mut self, bytes: usize, pause_ms: u64) -> Self {
        self.pace = Some((bytes, Duration::from_millis(pause_ms)));
        self
    }
}

/// The right answer for an object, as a good server gives it: ranges, `If-Range`, an ETag unless it is empty.
pub(crate) fn object(request: &Request, content: &[u8], etag: &str) -> Reply {
    let valid = request.header("if-range").is_none_or(|tag| tag == etag);
    let reply = match request.start() {
        Some(start) if valid && start >= content.len() => {
            Reply::new(416, b"").header("content-range", &format!("bytes */{}", content.len()))
        }
        Some(start) if valid => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Reply::new(206, &content[start..]).header("content-range", &range)
        }
        _ => Reply::new(200, content),
    };
    reply.header("etag", etag)
}

/// A request, and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) request: Request,
    /// Bytes of body that were sent.
    sent: Arc<AtomicU64>,
    /// The client went away before the end.
    abandoned: Arc<AtomicBool>,
}

impl Seen {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn was_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }
}

/// The server; it ends when this is dropped.
pub(crate) struct Faulty {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Faulty {
    /// Starts it. `answer` is given the count of requests before, and the request.
    pub(crate) async fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                connections.spawn(async move { serve(stream, &log, &*answer).await });
            }
        });
        Self { port, seen, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://mirror.test:{}{path}", self.port)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Makes sure that the requests so far, in their order, fetched each byte of an object of `length` bytes once.
    pub(crate) fn assert_each_byte_once(&self, length: u64) {
        let mut next = 0;
        for seen in self.seen() {
            assert_eq!(seen.request.start().unwrap_or(0) as u64, next, "{:?}", self.seen());
            next += seen.sent();
        }
        assert_eq!(next, length);
    }
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(usize, &Request) -> Reply + Send + Sync),
) {
    stream.set_nodelay(true).unwrap();
    while let Some(request) = read_request(&mut stream).await {
        let seen = Seen {
            request: request.clone(),
            sent: Arc::default(),
            abandoned: Arc::default(),
        };
        let count = {
            let mut log = log.lock().unwrap();
            log.push(seen.clone());
            log.len() - 1
        };
        let reply = answer(count, &request);
        let cut = reply.cut_after;
        if send(&mut stream, &request, reply, &seen).await.is_err() {
            seen.abandoned.store(true, Ordering::SeqCst);
            return;
        }
        if cut.is_some() {
            // What was sent arrives: no reset, only an end.
            let _ = stream.shutdown().await;
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let headers = lines.filter_map(|line| line.split_once(": "));
    Some(Request {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
    })
}

async fn send(stream: &mut TcpStream, request: &Request, reply: Reply, seen: &Seen) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut body = reply.body;
    if request.method == "HEAD" {
        body.clear();
    }
    body.truncate(reply.cut_after.unwrap_or(usize::MAX));
    let (step, pause) = reply.pace.unwrap_or((16 << 10, Duration::ZERO));
    for piece in head.as_bytes().chunks(step) {
        paused_write(stream, piece, pause).await?;
    }
    for piece in body.chunks(step) {
        paused_write(stream, piece, pause).await?;
        seen.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
    if reply.stall {
        // Until the client goes.
        let gone = stream.read(&mut [0]).await;
        return Err(gone.err().unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into()));
    }
    Ok(())
}

async fn paused_write(stream: &mut TcpStream, piece: &[u8], pause: Duration) -> std::io::Result<()> {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    stream.write_all(piece).await
}
