//! One `karatd` in a directory of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use api_types::{BootWish, StopRequest, Vm, VmPhase, VmSpec};
use client::Client;
use tempfile::TempDir;

use crate::environment::{Environment, Kernel};
use crate::guest::Guest;

/// Where scenarios that need a registry run it, in their network namespace; spoken to over plain HTTP.
pub(crate) const REGISTRY: &str = "127.0.0.1:5000";
/// How long the daemon has to answer after its start; generous, since the lab host is emulated.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a phase is waited for.
const PHASE_LIMIT: Duration = Duration::from_secs(60);
/// How often something is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(50);

/// A running `karatd`. Dropping it ends the daemon and every machine it has.
pub struct Daemon {
    /// The API.
    pub client: Client,
    environment: Environment,
    dir: TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon with nothing in it but the stock guest's files.
    pub async fn start(environment: &Environment) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("karat-")
            .tempdir_in(&environment.work)?;
        let path = dir.path();
        for sub in ["state/files", "run"] {
            std::fs::create_dir_all(path.join(sub))?;
        }
        let files = path.join("state/files");
        for name in ["vmlinuz", "vmlinux", "initrd"] {
            environment.install(name, &files)?;
        }
        std::fs::write(path.join("karat.toml"), configuration(path, environment))?;
        let client = Client::new(path.join("karat.sock"));
        let mut daemon = Self {
            client,
            environment: environment.clone(),
            dir,
            child: None,
        };
        daemon.launch().await?;
        Ok(daemon)
    }

    /// Starts the daemon again after [`Daemon::kill`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the daemon runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("karatd.log"))?;
        let child = Command::new(self.environment.program("karatd"))
            .arg("--config")
            .arg(self.dir.path().join("karat.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("karatd can not be started")?;
        self.child = Some(child);
        let begin = std::time::Instant::now();
        while let Err(error) = self.client.health().await {
            if begin.elapsed() > START_LIMIT {
                bail!(
                    "karatd does not answer: {error}; its log ends with:\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Ends the daemon as a crash would: SIGKILL, nothing is tidied up.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The daemon's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Directory in which this daemon lets users name files.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("state/files")
    }

    /// One of Karat's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.environment.program(name)
    }

    /// Debian's `docker-registry`, beside Karat's programs or installed.
    pub(crate) fn registry_program(&self) -> PathBuf {
        let beside = self.environment.program("docker-registry");
        if beside.exists() {
            beside
        } else {
            PathBuf::from("/usr/bin/docker-registry")
        }
    }

    /// Puts a further file of the stock guest where this daemon lets users name files.
    pub fn install(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.environment.install(name, &self.files())
    }

    /// A stock guest with a shell on its console, whose kernel says only what is wrong (in the lab each character costs an exit
    /// of an emulated host); change it before [`Daemon::run`] as needed.
    pub fn stock(&self, name: &str, kernel: Kernel) -> VmSpec {
        let file = |name: &str| Some(self.files().join(name).display().to_string());
        let words = "karat.test=button,shell";
        let boot = BootWish {
            kernel: file(kernel.file()),
            initrd: file("initrd"),
            cmdline: Some(format!("console=ttyS0 quiet panic=-1 {words}")),
        };
        let written = serde_json::json!({ "name": name, "memory": "512Mi", "boot": boot });
        // The shape is fixed above; only a change of VmSpec could break it, and then every scenario should fail loudly.
        #[expect(clippy::expect_used, reason = "a literal that is a VmSpec")]
        serde_json::from_value(written).expect("a literal VmSpec")
    }

    /// Makes a machine and starts it.
    pub async fn run(&self, spec: &VmSpec) -> anyhow::Result<Vm> {
        self.client
            .create_vm(spec)
            .await
            .with_context(|| format!("{} can not be made", spec.name))?;
        self.start_vm(&spec.name).await
    }

    /// Starts a machine that exists.
    pub async fn start_vm(&self, name: &str) -> anyhow::Result<Vm> {
        let operation = self
            .client
            .start_vm(name)
            .await
            .with_context(|| format!("{name} can not be started"))?;
        self.client
            .wait(operation.id, |_| ())
            .await
            .with_context(|| format!("{name} does not start"))?;
        Ok(self.client.vm(name).await?)
    }

    /// Shuts a machine down by its power button.
    pub async fn stop_vm(&self, name: &str) -> anyhow::Result<()> {
        let operation = self.client.stop_vm(name, &StopRequest::default()).await?;
        self.client
            .wait(operation.id, |_| ())
            .await
            .with_context(|| format!("{name} does not stop"))?;
        Ok(())
    }

    /// Attaches to a guest's console and waits for its shell.
    pub async fn guest(&self, name: &str) -> anyhow::Result<Guest> {
        Guest::attach(&self.client, name).await
    }

    /// Waits until a machine is in `phase`.
    pub async fn wait_for(&self, name: &str, phase: VmPhase) -> anyhow::Result<Vm> {
        let begin = std::time::Instant::now();
        loop {
            let vm = self.client.vm(name).await?;
            if vm.status.phase == phase {
                return Ok(vm);
            }
            ensure!(
                begin.elapsed() < PHASE_LIMIT,
                "{name} is {:?} and not {phase:?}: {:?}",
                vm.status.phase,
                vm.status
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("karatd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What there is to know after a failure: the daemon's log, and how each machine and its console log stand.
    pub async fn account(&self) -> String {
        let mut account = format!("the log of karatd ends with:\n{}\n", self.log_tail());
        for vm in self.client.vms().await.unwrap_or_default() {
            let name = &vm.spec.name;
            let log = self
                .client
                .console_log(name)
                .await
                .unwrap_or_else(|error| error.to_string());
            let tail: Vec<_> = log.lines().rev().take(5).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            account.push_str(&format!(
                "{name}: {:?}; its console log ends with:\n{tail}\n",
                vm.status
            ));
        }
        account
    }

    /// Ends every machine by force and then the daemon; run at the end of each scenario, passed or failed.
    pub async fn end(mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            for vm in self.client.vms().await? {
                self.client.remove_vm(&vm.spec.name, true).await?;
            }
            let mut child = self.child.take().context("the daemon ran a moment ago")?;
            terminate(&child)?;
            let status = child.wait()?;
            ensure!(
                status.success(),
                "karatd ended with {status} on SIGTERM; its log ends with:\n{}",
                self.log_tail()
            );
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A scenario that failed half-way: what it left running is found by its run directory.
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        for pid in machine_processes(self.dir.path()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn terminate(child: &Child) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .context("no process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
}

/// Machine processes with an open file beneath `dir`: theirs are the run and log directories.
fn machine_processes(dir: &Path) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let opens = |pid: &i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|target| target.starts_with(dir))
    };
    let named =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "karat-vmm");
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(named)
        .filter(opens)
        .collect()
}

fn configuration(dir: &Path, environment: &Environment) -> String {
    let at = |sub: &str| dir.join(sub).display().to_string();
    format!(
        "socket = {:?}\nstate_dir = {:?}\nrun_dir = {:?}\nvmm_path = {:?}\ninsecure_registries = [{REGISTRY:?}]\n",
        at("karat.sock"),
        at("state"),
        at("run"),
        environment.program("karat-vmm").display().to_string(),
    )
}
