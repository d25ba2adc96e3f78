//! A daemon in a temporary directory, and an HTTP client of a few lines.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything is waited for; far beyond what it takes, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon. Dropping it ends it and every machine it left.
pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// A problem with this status and code; returns it.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(
            self.header("content-type") == Some("application/problem+json"),
            "{}",
            self.head
        );
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert!(!body["detail"].as_str().unwrap_or_default().is_empty(), "{body}");
        body
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With more lines of configuration; `@DIR@` in them is the daemon's directory.
    pub(crate) fn start_with(more: &str) -> Self {
        Self::start_seeded(more, |_| ())
    }

    /// With a state directory that `seed` fills first.
    pub(crate) fn start_seeded(more: &str, seed: impl FnOnce(&Path)) -> Self {
        Self::start_with_vmm(&fake_machine(), more, seed)
    }

    /// The same with another machine process.
    pub(crate) fn start_with_vmm(vmm: &Path, more: &str, seed: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("state/files")).unwrap();
        std::fs::write(at("state/files/kernel"), "a kernel").unwrap();
        seed(&at("state"));
        let more = more.replace("@DIR@", &dir.path().display().to_string());
        let config = format!(
            "socket = {:?}\nstate_dir = {:?}\nrun_dir = {:?}\nvmm_path = {:?}\n{more}\n",
            at("karat.sock"),
            at("state"),
            at("run"),
            vmm,
        );
        std::fs::write(at("karat.toml"), config).unwrap();
        let child = spawn(dir.path());
        Self { dir, child }.ready()
    }

    fn ready(self) -> Self {
        wait_for("the daemon", || answers(&self.path("karat.sock")));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills the daemon as `kill -9` does, and starts another on the same directories.
    pub(crate) fn crash_and_restart(&mut self) {
        self.crash();
        self.restart();
    }

    /// Ends the daemon as systemd does; it must end by itself.
    pub(crate) fn terminate(&mut self) {
        signal(self.child.id(), rustix::process::Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.dir.path());
        wait_for("the daemon", || answers(&self.path("karat.sock")));
    }

    /// Changes the configuration; the next daemon reads it.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let path = self.path("karat.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is missing in {text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("karat.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "Content-Type: application/json\r\n", &body.to_string())
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.send(method, path, headers, body.as_bytes())
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: karat\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body); // An answer may come before all of it was read.
        read_answer(stream)
    }

    /// Kills the daemon as `kill -9` does.
    pub(crate) fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Makes a machine that boots the kernel in the allowed directory.
    pub(crate) fn create(&self, name: &str, cmdline: &str) -> Value {
        let answer = self.post("/v1/vms", &self.spec(name, cmdline));
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    pub(crate) fn spec(&self, name: &str, cmdline: &str) -> Value {
        let kernel = self.path("state/files/kernel");
        json!({"name": name, "memory": "64Mi", "boot": {"kernel": kernel, "cmdline": cmdline}})
    }

    /// Starts a machine and waits until it runs.
    pub(crate) fn run(&self, name: &str, cmdline: &str) -> Value {
        self.create(name, cmdline);
        let operation = self.begin(&format!("/v1/vms/{name}/start"), &json!({}));
        assert_eq!(operation["phase"], "Succeeded", "{operation}");
        self.vm(name)
    }

    /// Begins an operation and waits until it is over.
    pub(crate) fn begin(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        let location = answer.header("location").unwrap().to_owned();
        self.over(&location)
    }

    pub(crate) fn over(&self, operation: &str) -> Value {
        wait_for("an operation", || {
            let body = self.get(operation).json();
            (body["phase"] != "Running" && body["phase"] != "Pending").then_some(body)
        })
    }

    pub(crate) fn vm(&self, name: &str) -> Value {
        self.get(&format!("/v1/vms/{name}")).json()
    }

    /// Digest of the bytes of the image that came by this manifest.
    pub(crate) fn content(&self, manifest: &str) -> Value {
        let image = self.get(&format!("/v1/images/{manifest}")).json();
        assert!(image["digest"].as_str().unwrap().starts_with("sha256:"), "{image}");
        image["digest"].clone()
    }

    /// Waits until a machine is in a phase.
    pub(crate) fn until(&self, name: &str, phase: &str) -> Value {
        wait_for(phase, || {
            Some(self.vm(name)).filter(|vm| vm["status"]["phase"] == phase)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait(); // As above.
        let Ok(rows) = std::fs::read_dir("/proc") else { return };
        // Machines outlive the daemon on purpose; those of this test have its directory open.
        for pid in rows.filter_map(|row| row.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
            let is_ours = std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
                fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
                    .any(|target| target.starts_with(self.dir.path()))
            });
            if is_ours && pid != std::process::id() {
                signal(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal); // It may have ended.
}

fn spawn(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_karatd"))
        .arg("--config")
        .arg(dir.join("karat.toml"))
        .env("KARAT_LOG", "warn")
        .spawn()
        .unwrap()
}

/// Examples are built with the tests, beside the daemon.
pub(crate) fn fake_machine() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_karatd"))
        .with_file_name("examples")
        .join("fake_machine");
    assert!(
        path.exists(),
        "{} is missing: build the examples of karatd",
        path.display()
    );
    path
}

fn read_answer(mut stream: UnixStream) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // What came is judged below.
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("an answer");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = bytes[end + 4..].to_vec();
    Answer { status, head, body }
}

/// Whether a daemon serves: its socket alone is there before all else is.
fn answers(socket: &Path) -> Option<()> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let request = b"GET /healthz HTTP/1.1\r\nHost: karat\r\nConnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    (stream.read(&mut [0]).ok()? == 1).then_some(())
}

#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}
