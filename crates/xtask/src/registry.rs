//! A real OCI registry on loopback: Debian's `docker-registry` with file storage, filled by `skopeo`.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::tools::{output, run, say, target, tethered};

/// How long the registry may take to listen.
const START: Duration = Duration::from_secs(20);

/// A running registry; dropping it stops it.
pub struct Registry {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1. What was pushed before is still there.
    pub fn start() -> Result<Self> {
        packages::install(&[packages::REGISTRY])?;
        let dir = target().join("lab/registry");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = dir.join("config.yml");
        fs::write(&config, config_text(port, &dir.join("data")))?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = tethered("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start docker-registry")?;
        let mut registry = Self { child, port, dir };
        registry.wait()?;
        say(format!("started docker-registry on 127.0.0.1:{port}"));
        Ok(registry)
    }

    /// The port on 127.0.0.1 (10.0.2.2 as seen from a lab host).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Pushes an OCI layout as `name:tag`; gives the manifest's digest.
    pub fn push(&self, layout: &Path, name: &str) -> Result<String> {
        say(format!("pushes {name} to the registry"));
        let to = format!("docker://127.0.0.1:{}/{name}", self.port);
        let from = format!("oci:{}:latest", layout.display());
        run(Command::new("skopeo").args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--format",
            "oci",
            "--dest-tls-verify=false",
            &from,
            &to,
        ]))?;
        let asked = output(Command::new("skopeo").args([
            "--insecure-policy",
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            &to,
        ]))?;
        Ok(asked.trim().to_owned())
    }

    fn wait(&mut self) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > START {
                let log = fs::read_to_string(self.dir.join("registry.log")).unwrap_or_default();
                bail!("docker-registry does not listen on port {}:\n{log}", self.port);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config_text(port: u16, data: &Path) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
         delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: karat-tests\n",
        data.display()
    )
}
