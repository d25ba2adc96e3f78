//! Golden images of a registry, followed by a schedule.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api_types::{BootSource, BootSourceFrom, BootSourceWish, ImageAccepted, ImageCreate};
use client::ImageUpload;

use crate::daemon::{Daemon, REGISTRY};
use crate::environment::Kernel;
use crate::guest::Guest;

/// The tag that is followed.
const TAG: &str = "golden/demo:latest";
/// What machines call the newest import.
const ALIAS: &str = "newest";
/// Name of the boot source.
const SOURCE: &str = "demo";
/// How long the registry has to listen.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the schedule, which looks every minute, has to bring what was pushed.
const SCHEDULE_LIMIT: Duration = Duration::from_secs(150);
/// How often something is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(250);

/// Debian's registry, in a directory of its own.
struct Registry {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait(); // As above.
    }
}

impl Registry {
    async fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text)?;
        let child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{} can not be started", program.display()))?;
        let registry = Self { child, _dir: dir };
        let begin = Instant::now();
        while TcpStream::connect(REGISTRY).is_err() {
            ensure!(
                begin.elapsed() < START_LIMIT,
                "docker-registry does not listen on {REGISTRY}"
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(registry)
    }
}

pub(super) async fn boot_source_follows_a_tag(daemon: &mut Daemon) -> anyhow::Result<()> {
    let _registry = Registry::start(&daemon.registry_program()).await?;
    push(daemon, 1).await?;
    let wish = BootSourceWish {
        source: Some(BootSourceFrom {
            registry: Some(format!("docker://{REGISTRY}/{TAG}")),
            ..BootSourceFrom::default()
        }),
        schedule: Some("* * * * *".to_owned()),
        jitter_seconds: Some(0),
        managed: Some(ALIAS.to_owned()),
        imports_to_keep: Some(3),
        ..BootSourceWish::default()
    };
    daemon.client.put_boot_source(SOURCE, &wish).await?;
    let first = imports(daemon, 1, SCHEDULE_LIMIT).await?;
    let mut old = boot(daemon, "old").await?;
    reads(&mut old, 1).await?;

    // The schedule brings what is pushed; new machines get it, the one that runs keeps its own.
    push(daemon, 2).await?;
    let second = imports(daemon, 2, SCHEDULE_LIMIT).await?;
    let mut new = boot(daemon, "new").await?;
    reads(&mut new, 2).await?;
    reads(&mut old, 1).await?;
    daemon.stop_vm("old").await?;

    daemon.client.remove_vm("old", false).await?;

    // Three are kept: the fourth import removes the oldest that nothing uses.
    for number in [3, 4] {
        ensure!(
            exists(daemon, &first).await?,
            "an import went before there were more than three"
        );
        push(daemon, number).await?;
        let operation = daemon.client.sync_boot_source(SOURCE).await?;
        daemon.client.wait(operation.id, |_| ()).await?;
    }
    let kept = imports(daemon, 3, SCHEDULE_LIMIT).await?;
    gone(daemon, &first).await?;
    ensure!(
        kept.imports
            .iter()
            .any(|import| Some(import.image.as_str()) == newest(&second)),
        "{kept:?}"
    );
    reads(&mut new, 2).await?;
    let newest = daemon.client.image(ALIAS).await?;
    ensure!(
        Some(newest.id.as_str()) == self::newest(&kept),
        "the alias leads to {newest:?}"
    );
    daemon.stop_vm("new").await
}

/// Publishes a disk that begins with its number, by the daemon itself: a record, its data, the registry.
async fn push(daemon: &Daemon, number: u32) -> anyhow::Result<()> {
    let name = format!("built-{number}");
    let mut file = tempfile::tempfile()?;
    writeln!(file, "{}", mark(number))?;
    let length = 1 << 20;
    file.set_len(length)?;
    std::io::Seek::rewind(&mut file)?;
    let create = ImageCreate {
        name: Some(name.clone()),
        ..ImageCreate::default()
    };
    daemon.client.create_image(&create).await?;
    let upload = ImageUpload {
        file: file.into(),
        length,
        digest: None,
        store: None,
    };
    finish(daemon, daemon.client.upload_image(&name, upload, |_| ()).await?).await?;
    let operation = daemon.client.push_image(&name, &format!("{REGISTRY}/{TAG}")).await?;
    daemon.client.wait(operation.id, |_| ()).await?;
    Ok(daemon.client.remove_image(&name).await?)
}

async fn finish(daemon: &Daemon, accepted: ImageAccepted) -> anyhow::Result<()> {
    let operation = accepted.operation.context("nothing is being imported")?;
    daemon.client.wait(operation, |_| ()).await?;
    Ok(())
}

fn mark(number: u32) -> String {
    format!("golden image {number}")
}

/// Waits until the boot source has so many imports and is up to date.
async fn imports(daemon: &Daemon, count: usize, limit: Duration) -> anyhow::Result<BootSource> {
    let begin = Instant::now();
    loop {
        let source = daemon.client.boot_source(SOURCE).await?;
        let is_current = source
            .conditions
            .iter()
            .any(|one| one.kind == "UpToDate" && one.status == "True");
        if source.imports.len() == count && is_current {
            return Ok(source);
        }
        if begin.elapsed() > limit {
            bail!("the boot source has not come to {count} imports: {source:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}

fn newest(source: &BootSource) -> Option<&str> {
    source.imports.first().map(|import| import.image.as_str())
}

/// Whether the newest import of then is there still.
async fn exists(daemon: &Daemon, then: &BootSource) -> anyhow::Result<bool> {
    let wanted = newest(then).context("there was no import")?;
    let images = daemon.client.images().await?;
    Ok(images.iter().any(|image| image.id == wanted))
}

async fn gone(daemon: &Daemon, then: &BootSource) -> anyhow::Result<()> {
    let begin = Instant::now();
    while exists(daemon, then).await? {
        ensure!(begin.elapsed() < SCHEDULE_LIMIT, "an old image that nothing uses stays");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A stock guest whose root disk is the newest import.
async fn boot(daemon: &Daemon, name: &str) -> anyhow::Result<Guest> {
    let mut spec = daemon.stock(name, Kernel::BzImage);
    spec.image = Some(ALIAS.to_owned());
    daemon.run(&spec).await?;
    daemon.guest(name).await
}

/// The root disk begins with this number, read from the disk itself.
async fn reads(guest: &mut Guest, number: u32) -> anyhow::Result<()> {
    guest.run("echo 3 > /proc/sys/vm/drop_caches").await?;
    let seen = guest.run("busybox head -n 1 /dev/vda").await?;
    ensure!(
        seen == mark(number),
        "the root disk begins with {seen:?}, not {:?}",
        mark(number)
    );
    Ok(())
}
