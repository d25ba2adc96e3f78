//! Starts the real `karat-vmm` the way `karatd` does, and talks to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they saw"
)]
#![allow(dead_code, reason = "each test file uses its own part of this")]

mod console;
mod control_link;
pub(crate) mod moving;
mod payload;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use control::{CreateVm, DiskChain, DiskLayer, EndReport, FdRole, REPORT_FILE, Refusal, VmRequest, VmStatus};
use spec::{DiskBus, DiskFormat, DiskSpec, MachineParts, testing};
use tempfile::TempDir;

pub(crate) use console::Console;
pub(crate) use control_link::Link;
pub(crate) use payload::tiny_guest;

/// Anything a test waits for has happened by then, or never will: tiny guests take milliseconds, a busy host some more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// True where machines can be run; says so on standard error where not.
pub(crate) fn can_run() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("skipped: no usable /dev/kvm");
    }
    usable
}

/// What a machine is made of; change what the test is about.
pub(crate) struct Setup {
    pub(crate) parts: MachineParts,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    /// One chain per disk of `parts`, top first.
    pub(crate) disks: Vec<Vec<(PathBuf, DiskFormat)>>,
    /// One list of queue pairs per interface of `parts`.
    pub(crate) taps: Vec<Vec<OwnedFd>>,
    /// Where the machine was saved, if it is to go on from there.
    pub(crate) saved: Option<PathBuf>,
    /// Its memory is mapped from there.
    pub(crate) lazy: bool,
    /// It is a copy of the machine that was saved.
    pub(crate) copy: bool,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_keep: u32,
}

impl Setup {
    /// One vCPU, 32 MiB, a debug-exit port, and the tiny guest doing `test`.
    pub(crate) fn tiny(test: &str) -> Self {
        let mut setup = Self::plain(tiny_guest());
        setup.parts.cmdline = format!("test={test}");
        setup.parts.debug_exit = true;
        setup
    }

    /// One vCPU, 32 MiB, and this kernel.
    pub(crate) fn plain(kernel: PathBuf) -> Self {
        Self {
            parts: testing::small_machine(),
            kernel,
            initrd: None,
            disks: vec![],
            taps: vec![],
            saved: None,
            lazy: false,
            copy: false,
            log_max_bytes: 1 << 20,
            log_keep: 2,
        }
    }

    pub(crate) fn cpus(mut self, cores: u32) -> Self {
        self.parts.cpus.cores = cores;
        self
    }

    pub(crate) fn memory(mut self, size_bytes: u64) -> Self {
        self.parts.memory.size_bytes = size_bytes;
        self
    }

    /// With a raw virtio disk.
    pub(crate) fn disk(self, path: &Path, queues: u16) -> Self {
        let spec = testing::disk(&format!("disk{}", self.disks.len()), DiskBus::Virtio, queues);
        self.chain(spec, &[(path, DiskFormat::Raw)])
    }

    /// With a disk from these images, top first.
    pub(crate) fn chain(mut self, spec: DiskSpec, layers: &[(&Path, DiskFormat)]) -> Self {
        self.parts.disks.push(spec);
        let owned = layers.iter().map(|(path, format)| (path.to_path_buf(), *format));
        self.disks.push(owned.collect());
        self
    }
}

/// A chain as the daemon would open it, and its files.
pub(crate) fn open_chain(images: &[(PathBuf, DiskFormat)]) -> (DiskChain, Vec<OwnedFd>) {
    let (mut layers, mut files) = (Vec::new(), Vec::new());
    for (path, format) in images {
        let writable = layers.is_empty();
        let file = File::options().read(true).write(writable).open(path).unwrap();
        files.push(file.into());
        layers.push(DiskLayer {
            name: path.display().to_string(),
            format: *format,
            writable,
            data_file: None,
        });
    }
    (DiskChain { layers }, files)
}

/// A running `karat-vmm`. Killed when the test is over.
pub(crate) struct Vmm {
    child: Child,
    pub(crate) folder: TempDir,
}

impl Vmm {
    /// An empty one.
    pub(crate) fn spawn() -> Self {
        Self::spawn_with(&[])
    }

    /// An empty one that was started with these arguments. Backtraces are asked for, as operators do who look for a defect.
    pub(crate) fn spawn_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["log", "run"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let listen = |name: &str| OwnedFd::from(UnixListener::bind(folder.path().join(name)).unwrap());
        // A shell moves the sockets to their numbers; a test can not do that safely by itself.
        let child = Command::new("sh")
            .args(["-c", r#"exec 3<&0 4<&1 0</dev/null 1>&2; exec "$0" "$@""#])
            .arg(std::env::var_os("KARAT_VMM").unwrap_or_else(|| env!("CARGO_BIN_EXE_karat-vmm").into()))
            .args(arguments)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::from(listen("control.sock")))
            .stdout(Stdio::from(listen("console.sock")))
            .stderr(File::create(folder.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// One that has become the machine of `setup` and runs it.
    pub(crate) fn boot(setup: Setup) -> (Self, Link) {
        let vmm = Self::spawn();
        let mut link = vmm.link();
        vmm.create(&mut link, setup).unwrap();
        link.ask(VmRequest::Start).unwrap();
        (vmm, link)
    }

    /// Asks to become the machine of `setup`.
    pub(crate) fn create(&self, link: &mut Link, setup: Setup) -> Result<VmStatus, Refusal> {
        let (create, files) = self.creation(setup);
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        link.ask_with_files(VmRequest::Create(Box::new(create)), &borrowed)
    }

    /// What is sent to become the machine of `setup`, and the files that go with it.
    pub(crate) fn creation(&self, setup: Setup) -> (CreateVm, Vec<OwnedFd>) {
        let mut roles = vec![FdRole::Kernel, FdRole::LogDirectory, FdRole::RunDirectory];
        let open = |path: &Path| File::open(path).unwrap();
        let mut files: Vec<OwnedFd> = [&setup.kernel, &self.path("log"), &self.path("run")]
            .map(|path| open(path).into())
            .into();
        if let Some(initrd) = &setup.initrd {
            roles.push(FdRole::Initrd);
            files.push(open(initrd).into());
        }
        if let Some(saved) = &setup.saved {
            roles.push(FdRole::SavedDirectory {
                lazy: setup.lazy,
                copy: setup.copy,
            });
            files.push(open(saved).into());
        }
        let mut chains = Vec::new();
        for (index, images) in (0..).zip(&setup.disks) {
            let (chain, opened) = open_chain(images);
            roles.extend((0..).zip(&opened).map(|(layer, _)| FdRole::Disk { index, layer }));
            files.extend(opened);
            chains.push(chain);
        }
        for (index, pairs) in (0..).zip(setup.taps) {
            for (pair, tap) in (0..).zip(pairs) {
                roles.push(FdRole::Tap { index, pair });
                files.push(tap);
            }
        }
        let create = CreateVm {
            machine: setup.parts.try_into().unwrap(),
            chains,
            fds: roles,
            console_log_max_bytes: setup.log_max_bytes,
            console_log_keep: setup.log_keep,
        };
        (create, files)
    }

    /// Has it save the paused machine into `directory`, which is made.
    pub(crate) fn save(&self, link: &mut Link, directory: &Path) -> Result<VmStatus, Refusal> {
        std::fs::create_dir_all(directory).unwrap();
        let directory = File::open(directory).unwrap();
        link.ask_with_files(VmRequest::Save, &[directory.as_fd()])
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another control connection.
    pub(crate) fn link(&self) -> Link {
        Link::connect(&self.path("control.sock"))
    }

    /// Another console reader.
    pub(crate) fn console(&self) -> Console {
        Console::connect(&self.path("console.sock"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it keeps in memory; `RssShmem` is the guest's.
    pub(crate) fn resident(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let lines = status
            .lines()
            .filter(|line| line.starts_with("Rss") || line.starts_with("Threads"));
        lines.collect::<Vec<_>>().join(", ")
    }

    /// Its exit status, once it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("karat-vmm does not end; its log:\n{}", self.stderr());
    }

    /// Waits for the end; the report it left.
    pub(crate) fn report(&mut self) -> EndReport {
        let status = self.wait();
        let text = std::fs::read_to_string(self.path("run").join(REPORT_FILE))
            .unwrap_or_else(|error| panic!("no report: {error}; its log:\n{}", self.stderr()));
        let report: EndReport = serde_json::from_str(&text).unwrap();
        assert_eq!(status.code(), Some(i32::from(!report.reason.is_clean())));
        report
    }

    /// Ends it over `link`; the report it left.
    pub(crate) fn report_after_quit(&mut self, link: &mut Link) -> EndReport {
        link.ask(VmRequest::Quit).unwrap();
        self.report()
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap()
    }

    /// All that was logged of the console, rotated logs first.
    pub(crate) fn console_log(&self) -> String {
        let log = |age: &str| std::fs::read_to_string(self.path("log").join(format!("console.log{age}")));
        [".2", ".1", ""]
            .iter()
            .map(|age| log(age).unwrap_or_default())
            .collect()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Fails when it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // Shown with the failed test.
            println!("--- log of karat-vmm ---\n{}", self.stderr());
            println!("--- console ---\n{}", self.console_log());
        }
    }
}
