//! nginx, run for one test from a directory of its own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// A running nginx; it is stopped when this is dropped.
pub(crate) struct Nginx {
    directory: tempfile::TempDir,
    process: Child,
    port: u16,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master stops its workers when it is asked, not when it is killed.
        let _ = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status();
        let _ = self.process.wait();
    }
}

impl Nginx {
    /// Starts it; none, and a line on stderr, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let program = Path::new("/usr/sbin/nginx");
        if !program.exists() {
            eprintln!("skipped: nginx is not installed (apt install nginx-light)");
            return None;
        }
        // The port may be taken between being found and being used.
        (0..5)
            .find_map(|_| Self::try_start(program))
            .or_else(|| panic!("nginx does not start"))
    }

    fn try_start(program: &Path) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(path.join("www/slow")).unwrap();
        std::fs::create_dir_all(path.join("www/half")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // As root it would serve as somebody else, who may not read the directory.
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let configuration = format!(
            "{user} daemon off; pid pid; error_log error.log; worker_processes 1;
            events {{ worker_connections 64; }}
            http {{
                log_format counted '$request_method $uri $status $body_bytes_sent';
                access_log access.log counted;
                client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
                server {{ listen 127.0.0.1:{port}; root www; location /slow/ {{ root www; limit_rate 200k; }}
                location /half/ {{ root www; limit_rate_after 2m; limit_rate 50k; }} }}
            }}"
        );
        std::fs::write(path.join("conf"), configuration).unwrap();
        let process = Command::new(program)
            .args(["-p", path.to_str()?, "-c", "conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut nginx = Self {
            directory,
            process,
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && nginx.process.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(nginx);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Where files may be put.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("www")
    }

    /// Puts a file where its URL, which is returned, fetches it; last modified a while ago.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> String {
        let path = self.root().join(name);
        std::fs::write(&path, content).unwrap();
        let past = SystemTime::now() - Duration::from_secs(1000 + content.len() as u64);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(past).unwrap();
        self.url(name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    /// As [`Nginx::log`], once it has `count` lines: they are written after the answer was sent.
    pub(crate) fn log_of(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.log().len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.log()
    }

    /// Lines "GET /path status bytes".
    pub(crate) fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        log.lines()
            .filter(|line| !line.contains(" 400 "))
            .map(str::to_owned)
            .collect()
    }
}
