//! nginx, run for one test from a directory of its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::certificates::{Authority, Valid};

/// A running nginx; it is stopped when this is dropped.
pub(crate) struct Nginx {
    directory: tempfile::TempDir,
    process: Child,
    pub(crate) authority: Authority,
    pub(crate) port: u16,
    pub(crate) tls: u16,
    pub(crate) tls_expired: u16,
    pub(crate) tls_future: u16,
    pub(crate) tls_wrong_name: u16,
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

/// One that nobody uses at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What every server has.
const LOCATIONS: &str = "location / { root www; }
    location /private/ { root www; auth_basic 'images'; auth_basic_user_file passwords; }
    location /whole/ { alias www/; max_ranges 0; }
    location /unsure/ { alias www/; etag off; add_header Last-Modified ''; }
";

fn configuration(servers: &str) -> String {
    // As root it would serve as somebody else, who may not read the directory.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        "{user} daemon off; pid pid; error_log error.log; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{
            log_format counted '$request_method $uri $status [$http_range] $body_bytes_sent';
            access_log access.log counted;
            client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
            {servers}
        }}"
    )
}

impl Nginx {
    /// Starts it, for `*.test`; none, and a line on stderr, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let Some(program) = program.iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: nginx is not installed (apt install nginx-light)");
            return None;
        };
        // Ports may be taken between being found and being used.
        (0..5)
            .find_map(|_| Self::try_start(program))
            .or_else(|| panic!("nginx does not start"))
    }

    fn try_start(program: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(path.join("www/private")).unwrap();
        std::fs::write(path.join("passwords"), "reader:{PLAIN}open sesame\n").unwrap();
        let authority = Authority::new("Karat test authority");
        let certificate = |name: &str, host, valid| {
            let (certificate, key) = authority.issue(host, valid);
            std::fs::write(path.join(format!("{name}.pem")), certificate).unwrap();
            std::fs::write(path.join(format!("{name}.key")), key).unwrap();
        };
        certificate("good", "mirror.test", Valid::Now);
        certificate("expired", "mirror.test", Valid::UntilLongAgo);
        certificate("future", "mirror.test", Valid::NotForLong);
        certificate("wrong", "other.test", Valid::Now);
        let ports: [u16; 5] = std::array::from_fn(|_| free_port());
        let [port, tls, tls_expired, tls_future, tls_wrong_name] = ports;
        let server = |port: u16, name: Option<&str>| {
            let tls = name.map(|name| format!("ssl_certificate {name}.pem; ssl_certificate_key {name}.key;"));
            let listen = if tls.is_some() { "ssl" } else { "" };
            format!(
                "server {{ listen 127.0.0.1:{port} {listen}; {} include locations; }}\n",
                tls.unwrap_or_default()
            )
        };
        let servers = [
            server(port, None),
            server(tls, Some("good")),
            server(tls_expired, Some("expired")),
            server(tls_future, Some("future")),
            server(tls_wrong_name, Some("wrong")),
        ];
        std::fs::write(path.join("locations"), LOCATIONS).unwrap();
        std::fs::write(path.join("conf"), configuration(&servers.concat())).unwrap();
        let process = Command::new(program)
            .args(["-p", path.to_str()?, "-c", "conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut nginx = Self {
            directory,
            process,
            authority,
            port,
            tls,
            tls_expired,
            tls_future,
            tls_wrong_name,
        };
        nginx.is_up().then_some(nginx)
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                eprintln!(
                    "nginx: {}",
                    std::fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default()
                );
                return false;
            }
            if std::net::TcpStream::connect(("127.0.0.1", self.tls_wrong_name)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Puts a file where `/name` fetches it, last modified a while ago.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        let past = std::time::SystemTime::now() - Duration::from_secs(1000 + content.len() as u64);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(past)
            .unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("www").join(name)
    }

    /// Lines "GET /path status [range] bytes", without those that were put there by checks of the server itself.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        log.lines()
            .filter(|line| !line.contains(" 400 "))
            .map(str::to_owned)
            .collect()
    }
}
