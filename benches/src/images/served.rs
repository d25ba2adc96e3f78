//! A container disk as people build them, in Debian's registry on loopback.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use images::ImportSource;

use super::process::{Took, measured};
use crate::{Figure, Target};

/// How many sources are polled; each is a tag of its own.
pub(super) const POLLS: usize = 100;

/// The registry and the image in it.
pub(super) struct Served {
    dir: PathBuf,
    registry: Child,
    pub(super) host: String,
    store: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

impl Served {
    /// Makes an image with `data_mib` of data and pushes it.
    pub(super) fn make(dir: &Path, data_mib: u64) -> Result<Self> {
        let (registry, host) = start(dir)?;
        let served = Self {
            dir: dir.to_path_buf(),
            registry,
            store: dir.join("registry-store"),
            host,
        };
        served.push(data_mib)?;
        Ok(served)
    }

    fn push(&self, data_mib: u64) -> Result<()> {
        write_disk(&self.dir.join("raw"), data_mib)?;
        for line in [
            "qemu-img convert -f raw -O qcow2 raw disk.qcow2",
            "rm raw",
            "umoci init --layout oci",
            "umoci new --image oci:v1",
            "umoci insert --rootless --image oci:v1 disk.qcow2 /disk/disk.qcow2",
            &format!(
                "skopeo --insecure-policy copy --quiet --dest-tls-verify=false oci:oci:v1 docker://{}",
                self.reference()
            ),
            "rm -r oci disk.qcow2",
        ] {
            self.shell(line)?;
        }
        ensure!(self.store.exists(), "the registry keeps its images elsewhere");
        Ok(())
    }

    /// Pushes a small image under as many tags, `t1` and so on, of `demo/small`.
    pub(super) fn push_small(&self) -> Result<()> {
        let to = format!("docker://{}/demo/small", self.host);
        let copy = "skopeo --insecure-policy copy --quiet --dest-tls-verify=false --src-tls-verify=false";
        for line in [
            "head -c 1048576 /dev/urandom > small.raw",
            "umoci init --layout small",
            "umoci new --image small:v1",
            "umoci insert --rootless --image small:v1 small.raw /disk/disk.raw",
            &format!("for tag in $(seq {POLLS}); do {copy} oci:small:v1 {to}:t$tag; done"),
            "rm -r small small.raw",
        ] {
            self.shell(line)?;
        }
        Ok(())
    }

    fn shell(&self, line: &str) -> Result<()> {
        let output = Command::new("sh").args(["-ec", line]).current_dir(&self.dir).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}: {error}");
        Ok(())
    }

    fn reference(&self) -> String {
        format!("{}/demo/disk:v1", self.host)
    }

    /// Into a new store, sealed.
    pub(super) fn imported_by_karat(&self) -> Result<Took> {
        let program = std::env::current_exe()?;
        let line = format!(
            "{} import --store karat --reference {}",
            program.display(),
            self.reference()
        );
        let took = measured(&self.dir, &line)?;
        // Sealed directories let nobody in.
        self.shell("chmod -R u+w karat && rm -r karat && sync -f .")?;
        Ok(took)
    }

    /// To a durable qcow2 file.
    pub(super) fn imported_by_peer(&self) -> Result<Took> {
        let lines = format!(
            "mkdir peer
            skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://{} dir:peer/copied
            tar -xzf peer/copied/$(ls -S peer/copied | head -n 1) -C peer disk/disk.qcow2
            qemu-img convert -f qcow2 -O qcow2 peer/disk/disk.qcow2 peer/disk.qcow2
            sync peer/disk.qcow2",
            self.reference()
        );
        let took = measured(&self.dir, &lines)?;
        self.shell("rm -r peer && sync -f .")?;
        Ok(took)
    }

    /// Asks whether the image is still the one it was, for as many sources, one after the other.
    pub(super) async fn polled(&self) -> Result<Figure> {
        let store = super::open(&self.dir.join("polls"), &self.host)?;
        let source = ImportSource::Registry {
            reference: self.reference().parse()?,
        };
        let first = store.probe(&source).await?;
        let begun = Instant::now();
        for _ in 0..POLLS {
            ensure!(store.probe(&source).await? == first, "the image changed");
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Figure::new(
            "poll of 100 unchanged sources",
            seconds,
            "s",
            None,
            Target::AtMost(1.0),
        ))
    }
}

fn start(dir: &Path) -> Result<(Child, String)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.join("registry-store").display()
    );
    std::fs::write(dir.join("registry.yml"), config)?;
    let registry = Command::new("docker-registry")
        .args(["serve", "registry.yml"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("docker-registry can not be run")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < deadline, "docker-registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((registry, format!("127.0.0.1:{port}")))
}

/// Every other MiB a hole; of the others half are noise and half compress to about a half, as file systems do.
fn write_disk(path: &Path, data_mib: u64) -> Result<()> {
    use std::io::Seek;
    let file = File::create(path)?;
    file.set_len(data_mib << 21)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = vec![0_u8; 1 << 20];
    for index in 0..data_mib {
        let mask = if index % 2 == 0 {
            u64::MAX
        } else {
            0x0f0f_0f0f_0f0f_0f0f
        };
        for word in piece.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&(state & mask).to_le_bytes());
        }
        out.write_all(&piece)?;
        out.seek_relative(1 << 20)?;
    }
    out.flush()?;
    Ok(())
}
