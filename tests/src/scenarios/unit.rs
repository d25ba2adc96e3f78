//! The daemon under the service file that is shipped, with all its confinement.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api_types::{
    ByteSize, ErrorCode, ImageAccepted, ImageCreate, ImageImport, ImageState, ImportOptions, StopRequest, Vm, VmPhase,
};
use client::{Client, ClientError, ImageUpload};

use super::live::{has, on_scsi};
use super::load;
use super::storage::qemu;
use crate::daemon::Daemon;
use crate::environment::Kernel;
use crate::guest::Guest;

/// The service file.
const UNIT: &str = include_str!("../../../packaging/karatd.service");
/// Where units are put that are gone with the next start of the host (systemd.unit(5)); there while systemd runs it (sd_booted(3)).
const UNITS: &str = "/run/systemd/system";
/// Length of the image, bytes.
const IMAGE_BYTES: u64 = 4 << 20;
/// What the image holds in its second half.
const MARK: &str = "under the unit";
/// Size of the machine's disk, MiB.
const DISK_MIB: u32 = 160;
/// How long the service may take until it answers again.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A service made of the shipped file, under names of its own. It goes with this, and so do its machines.
struct Service {
    name: String,
    client: Client,
}

impl Service {
    fn start(daemon: &Daemon) -> anyhow::Result<Self> {
        let name = format!("karat-e2e-{}", std::process::id());
        let client = Client::new(Path::new("/run").join(&name).join("karat.sock"));
        let service = Self { name, client };
        let state = service.state();
        std::fs::create_dir_all(service.files())?;
        // Where the unit lets the daemon see and run them.
        for program in ["karatd", "karat-vmm"] {
            std::fs::copy(daemon.program(program), state.join(program))
                .with_context(|| format!("{program} can not be copied"))?;
        }
        let run = service.run();
        let config = format!(
            "socket = {:?}\nstate_dir = {state:?}\nrun_dir = {run:?}\nvmm_path = {:?}\n",
            run.join("karat.sock"),
            state.join("karat-vmm"),
        );
        std::fs::write(state.join("karat.toml"), config)?;
        std::fs::write(service.unit_file(), service.unit()?)?;
        systemctl(&["daemon-reload"])?;
        match systemctl(&["start", &service.name]) {
            Ok(()) => Ok(service),
            Err(error) => Err(error.context(service.log())),
        }
    }

    /// The shipped file, but for the names of directories and programs, and for what it waits for.
    fn unit(&self) -> anyhow::Result<String> {
        let mut unit = String::from("[Unit]\nDescription=The shipped service, in a test\n");
        let begin = UNIT.find("[Service]").context("the unit has no [Service]")?;
        let end = UNIT.find("[Install]").context("the unit has no [Install]")?;
        let (mut changed, state) = (0, self.state());
        for line in UNIT.get(begin..end).unwrap_or_default().lines() {
            let ours = match line.split_once('=') {
                Some((key @ ("RuntimeDirectory" | "ConfigurationDirectory"), _)) => format!("{key}={}", self.name),
                Some(("StateDirectory", _)) => format!("StateDirectory={0} {0}/files", self.name),
                Some(("ReadWritePaths", _)) => format!("ReadWritePaths={}", self.run().display()),
                Some(("ExecStart", _)) => format!("ExecStart={0}/karatd --config {0}/karat.toml", state.display()),
                _ => String::new(),
            };
            changed += usize::from(!ours.is_empty());
            unit.push_str(if ours.is_empty() { line } else { &ours });
            unit.push('\n');
        }
        ensure!(
            changed == 5,
            "the unit has other directories than this test knows: {unit}"
        );
        Ok(unit)
    }

    /// The daemon ends and a new one comes; it answers when this returns.
    async fn restart(&self) -> anyhow::Result<()> {
        systemctl(&["restart", &self.name])?;
        let begin = Instant::now();
        while let Err(error) = self.client.health().await {
            ensure!(begin.elapsed() < ANSWER_LIMIT, "the service does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = Command::new("journalctl")
            .args(["-q", "-n", "40", "-o", "cat", "-u", &self.name])
            .output();
        let text = log.map(|log| String::from_utf8_lossy(&log.stdout).into_owned());
        text.unwrap_or_else(|error| error.to_string())
    }

    fn unit_file(&self) -> PathBuf {
        Path::new(UNITS).join(format!("{}.service", self.name))
    }

    fn state(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.name)
    }

    fn files(&self) -> PathBuf {
        self.state().join("files")
    }

    fn run(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What remains is in directories that nothing else uses. Its machines outlive the daemon, so all go at once.
        drop(systemctl(&["kill", "--signal=KILL", &self.name]));
        drop(systemctl(&["stop", &self.name]));
        drop(std::fs::remove_file(self.unit_file()));
        drop(systemctl(&["daemon-reload"]));
        for directory in [self.state(), self.run(), Path::new("/etc").join(&self.name)] {
            drop(std::fs::remove_dir_all(directory));
        }
    }
}

fn systemctl(words: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("systemctl").args(words).output();
    let done = done.context("systemctl can not be run")?;
    ensure!(
        done.status.success(),
        "systemctl {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// An image is converted and a machine made of it, whose root disk, on virtio-scsi as the image asks, becomes another image and
/// then stands alone while the guest writes and verifies; the daemon comes anew under it. All of this in the confinement of the
/// shipped unit.
#[expect(clippy::print_stderr, reason = "a scenario that is skipped says so")]
pub(super) async fn a_root_disk_changes_under_the_shipped_service(daemon: &mut Daemon) -> anyhow::Result<()> {
    if !Path::new(UNITS).is_dir() {
        eprintln!("skipped: systemd does not run this host");
        return Ok(());
    }
    let service = Service::start(daemon)?;
    let passed = root_disk_changes(daemon, &service).await;
    passed.with_context(|| format!("the service's log ends with:\n{}", service.log()))
}

async fn root_disk_changes(daemon: &Daemon, service: &Service) -> anyhow::Result<()> {
    let client = &service.client;
    client.health().await.context("the service does not answer")?;
    import(daemon, client).await?;
    let mut guest = boot(daemon, service).await?;
    let marked = format!(
        "busybox dd if=/dev/sda bs=1M skip=2 count=1 2>/dev/null | busybox head -c {}",
        MARK.len()
    );
    let seen = guest.run(&marked).await?;
    ensure!(seen == MARK, "the root disk is not the image: {seen:?}");
    load::begin(&mut guest, "/dev/sda").await?;
    snapshot(client).await?;
    let before = client.vm("guest").await?;
    let refused = client.remove_image("golden").await.err();
    ensure!(
        refused.as_ref().and_then(ClientError::code) == Some(ErrorCode::InUse),
        "an image that the root disk is on: {refused:?}"
    );
    let flattened = client.flatten_vm("guest").await?;
    client.wait(flattened.id, |_| ()).await?;
    ensure!(stands_alone(&client.vm("guest").await?), "{before:?}");
    client.remove_image("golden").await?;
    drop(guest);
    service.restart().await?;
    let after = client.vm("guest").await?;
    ensure!(
        after.status.phase == VmPhase::Running && after.status.pid == before.status.pid,
        "the machine did not outlive its daemon: {after:?}"
    );
    let mut guest = Guest::reattach(client, "guest").await?;
    guest.run("export PATH=/bin:/usr/bin").await?;
    load::end(&mut guest, "/dev/sda").await?;
    // The image was taken as if the power had gone.
    let wish = serde_json::json!({ "name": "copy", "source": { "kind": "image", "image": "taken" } });
    let made = client.create_volume(&serde_json::from_value(wish)?).await?;
    let operation = made.operation.context("the volume is not made")?;
    client.wait(operation, |_| ()).await?;
    client.attach_disk("guest", &on_scsi("copy")).await?;
    has(&mut guest, "sdb", true).await?;
    load::left_sound(&mut guest, "/dev/sdb").await?;
    let stopping = client.stop_vm("guest", &StopRequest::default()).await?;
    client.wait(stopping.id, |_| ()).await?;
    let found = client.fsck_images().await?;
    ensure!(found.findings.is_empty(), "{found:?}");
    Ok(client.remove_vm("guest", false).await?)
}

fn stands_alone(vm: &Vm) -> bool {
    vm.status.root_disk.as_ref().is_some_and(|root| root.stands_alone)
}

/// An image in a format of others, which a program in a confinement of its own converts.
async fn import(daemon: &Daemon, client: &Client) -> anyhow::Result<()> {
    let files = daemon.files();
    let disk = std::fs::File::create(files.join("unit.raw"))?;
    disk.set_len(IMAGE_BYTES)?;
    std::os::unix::fs::FileExt::write_all_at(&disk, MARK.as_bytes(), IMAGE_BYTES / 2)?;
    let convert = ["convert", "-f", "raw", "-O", "vmdk", "unit.raw", "unit.vmdk"];
    qemu(&files, "qemu-img", &convert)?;
    let on_scsi = [("hw_disk_bus", "scsi"), ("hw_scsi_model", "virtio-scsi")];
    let create = ImageCreate {
        name: Some("golden".to_owned()),
        properties: on_scsi.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..ImageCreate::default()
    };
    client.create_image(&create).await?;
    let file = tokio::fs::File::open(files.join("unit.vmdk")).await?;
    let upload = ImageUpload {
        length: file.metadata().await?.len(),
        file,
        digest: None,
        store: None,
    };
    finish(client, client.upload_image("golden", upload, |_| ()).await?).await?;
    let image = client.image("golden").await?;
    ensure!(
        image.state == ImageState::Active && image.source_format.as_deref() == Some("vmdk"),
        "{image:?}"
    );
    Ok(())
}

async fn finish(client: &Client, accepted: ImageAccepted) -> anyhow::Result<()> {
    let operation = accepted.operation.context("nothing is being imported")?;
    client.wait(operation, |_| ()).await?;
    Ok(())
}

/// A stock guest with the tools of disk scenarios, its root disk made of the image and grown.
async fn boot(daemon: &Daemon, service: &Service) -> anyhow::Result<Guest> {
    let client = &service.client;
    let mut spec = daemon.stock("guest", Kernel::BzImage);
    spec.image = Some("golden".to_owned());
    spec.disk_size = Some(ByteSize::from_mib(DISK_MIB));
    let boot = spec.boot.get_or_insert_default();
    boot.initrd = Some(daemon.install("initrd-disk")?.display().to_string());
    for file in [&mut boot.kernel, &mut boot.initrd].into_iter().flatten() {
        let name = Path::new(file.as_str()).file_name().context("a file has a name")?;
        let there = service.files().join(name);
        std::fs::copy(&*file, &there)?;
        *file = there.display().to_string();
    }
    client
        .create_vm(&spec)
        .await
        .context("no machine is made from the image")?;
    let starting = client.start_vm("guest").await?;
    client
        .wait(starting.id, |_| ())
        .await
        .context("the machine does not start")?;
    let vm = client.vm("guest").await?;
    if stands_alone(&vm) || vm.status.root_disk.is_none() {
        bail!("the root disk is not on the image: {vm:?}");
    }
    let mut guest = Guest::attach(client, "guest").await?;
    guest.run("export PATH=/bin:/usr/bin").await?;
    Ok(guest)
}

/// Makes an image of the root disk under the load.
async fn snapshot(client: &Client) -> anyhow::Result<()> {
    let wish = ImageCreate {
        name: Some("taken".to_owned()),
        import: Some(ImageImport::Snapshot {
            vm: Some("guest".to_owned()),
            disk: None,
            volume: None,
            options: ImportOptions::default(),
        }),
        ..ImageCreate::default()
    };
    finish(client, client.create_image(&wish).await?).await
}
