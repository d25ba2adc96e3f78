//! Two daemons that know each other, each with a certificate of one authority.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::harness::{Daemon, fake_machine, wait_for};

/// An authority of the test's own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn make() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes its certificate, and one for loopback with its key: `NAME-ca.pem`, `NAME.pem`, `NAME.key`.
    pub(crate) fn issue(&self, directory: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let write =
            |suffix: &str, text: String| std::fs::write(directory.join(format!("{name}{suffix}")), text).unwrap();
        write("-ca.pem", self.0.pem());
        write(".pem", certificate.pem());
        write(".key", key.serialize_pem());
    }
}

/// A port that was free just now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Lines of configuration with which a daemon serves TLS.
pub(crate) fn tls_config(directory: &Path, name: &str, port: u16) -> String {
    let file = |suffix: &str| directory.join(format!("{name}{suffix}"));
    format!(
        "[tls]\nlisten = \"127.0.0.1:{port}\"\nurl = \"https://127.0.0.1:{port}\"\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        file(".pem"),
        file(".key"),
        file("-ca.pem"),
    )
}

/// Asks over TLS, and returns the whole answer; with the certificate `name`, if there is one.
pub(crate) fn ask(directory: &Path, ca: &str, name: Option<&str>, port: u16, request: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(directory.join(format!("{ca}-ca.pem"))).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match name {
        Some(name) => {
            let certificate = CertificateDer::from_pem_file(directory.join(format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let connection = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(connection, stream);
    let head = format!("{request} HTTP/1.1\r\nHost: karat\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        // The end of the stream without TLS's own farewell is an end here.
        Err(error) if text.is_empty() => Err(error),
        _ => Ok(text),
    }
}

/// Two hosts, `a` and `b`, and what both see. Filters of system calls have tests of their own.
pub(crate) struct Pair {
    pub(crate) a: Daemon,
    pub(crate) b: Daemon,
    pub(crate) shared: tempfile::TempDir,
}

impl Pair {
    pub(crate) fn start() -> Self {
        Self::start_with("", "")
    }

    /// With real machine processes, whose guests run this kernel.
    pub(crate) fn start_with_vmm(vmm: &Path, kernel: &Path) -> Self {
        Self::start_on(vmm, &std::fs::read(kernel).unwrap(), "", "")
    }

    /// With more lines in the section `[migration]` of each.
    pub(crate) fn start_with(more_a: &str, more_b: &str) -> Self {
        Self::start_on(&fake_machine(), b"a kernel", more_a, more_b)
    }

    fn start_on(vmm: &Path, kernel: &[u8], more_a: &str, more_b: &str) -> Self {
        let shared = tempfile::tempdir().unwrap();
        let authority = Authority::make();
        for name in ["a", "b"] {
            authority.issue(shared.path(), name, |_| ());
        }
        let files = shared.path().join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("kernel"), kernel).unwrap();
        let ports = [free_port(), free_port()];
        let config = |own: usize, more: &str| {
            let (names, other) = (["a", "b"], 1 - own);
            format!(
                "reserved_space = 0\nfile_roots = [{files:?}]\n{}[hosts.{}]\nurl = \"https://127.0.0.1:{}\"\n[migration]\nbind = \"127.0.0.1\"\n{more}\n",
                tls_config(shared.path(), names[own], ports[own]),
                names[other],
                ports[other],
            )
        };
        let start = |config: String| Daemon::start_with_vmm(vmm, &config, |_| ());
        let (a, b) = (start(config(0, more_a)), start(config(1, more_b)));
        Self { a, b, shared }
    }

    /// Directory of the steps of moves.
    pub(crate) fn steps(&self) -> PathBuf {
        let steps = self.shared.path().join("steps");
        std::fs::create_dir_all(&steps).unwrap();
        steps
    }

    /// From now on a move waits at this step.
    pub(crate) fn hold(&self, step: &str) {
        std::fs::write(self.steps().join(format!("hold-{step}")), "").unwrap();
    }

    /// Waits until a move is at this step.
    pub(crate) fn at(&self, step: &str) {
        let path = self.steps().join(format!("at-{step}"));
        wait_for(step, || path.exists().then_some(()));
    }

    pub(crate) fn let_go(&self, step: &str) {
        std::fs::remove_file(self.steps().join(format!("hold-{step}"))).unwrap();
    }

    /// Every step is as if no move had come to it.
    pub(crate) fn forget(&self) {
        for entry in std::fs::read_dir(self.steps()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("at-") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    /// A machine for `b`.
    pub(crate) fn b_spec(&self, name: &str) -> Value {
        let kernel = self.shared.path().join("files/kernel");
        json!({"name": name, "memory": "64Mi", "boot": {"kernel": kernel}})
    }

    /// Runs a machine at `a` that can be held at each step of its moves.
    pub(crate) fn run(&self, name: &str) -> Value {
        self.run_spec(name, &json!({}))
    }

    /// The same with more in its specification.
    pub(crate) fn run_spec(&self, name: &str, more: &Value) -> Value {
        let kernel = self.shared.path().join("files/kernel");
        let cmdline = format!("moves={}", self.steps().display());
        let mut spec = json!({"name": name, "memory": "64Mi", "boot": {"kernel": kernel, "cmdline": cmdline}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.a.post("/v1/vms", &spec);
        assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
        let started = self.a.begin(&format!("/v1/vms/{name}/start"), &json!({}));
        assert_eq!(started["phase"], "Succeeded", "{started}");
        self.a.vm(name)
    }
}

/// Begins to move a machine to `target`; returns the path of the move.
pub(crate) fn migrate(daemon: &Daemon, vm: &str, target: &str) -> String {
    let answer = daemon.post("/v1/migrations", &json!({"vm": vm, "target": target}));
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    answer.header("location").unwrap().to_owned()
}

/// Waits until a move is over.
pub(crate) fn over(daemon: &Daemon, migration: &str) -> Value {
    wait_for("the end of a move", || {
        let body = daemon.get(migration).json();
        (body["completed"] == true).then_some(body)
    })
}

/// Machines that a daemon has.
pub(crate) fn vms(daemon: &Daemon) -> Vec<Value> {
    daemon.get("/v1/vms").json()["items"].as_array().unwrap().clone()
}

/// Waits until a daemon has nothing of any machine.
#[track_caller]
pub(crate) fn nothing_left(daemon: &Daemon) {
    let empty = |name: &str| std::fs::read_dir(daemon.path(name)).map_or(0, Iterator::count) == 0;
    wait_for("nothing to be left", || {
        (vms(daemon).is_empty() && empty("state/vms") && empty("run/vms")).then_some(())
    });
}
