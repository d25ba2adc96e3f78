//! The engine against QEMU's tools, the conformance suite, shadow models, and itself on several threads.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panicking, images here are small, and a skip has to be seen"
)]

mod compress;
mod conformance;
mod epochs;
mod faults;
mod features;
mod growth;
mod jitter;
mod power;
mod qemu;
mod stress;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk::{Access, Disk, DiskIo, InMemory};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use tempfile::TempDir;
use uring::Executor;

/// Blocks on one future, with an executor on which operations go on when their futures are dropped.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    Executor::new(8).unwrap().block_on(future).unwrap()
}

/// A directory for images, and QEMU's tools in it. `None`, and a word about it, where those are not installed.
pub(crate) struct Lab(TempDir);

impl Lab {
    pub(crate) fn new() -> Option<Self> {
        match Command::new("qemu-img").arg("--version").output() {
            Ok(told) if told.status.success() => Some(Self(TempDir::new().unwrap())),
            _ => {
                eprintln!("skipped: qemu-img is not installed");
                None
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs one of QEMU's tools in the directory; it has to succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let tool = words.next().unwrap();
        let told = Command::new(tool)
            .args(words)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            told.status.success(),
            "{line}: {text}{}",
            String::from_utf8_lossy(&told.stderr)
        );
        text
    }

    /// Runs a qemu-io command with spaces in it.
    pub(crate) fn io(&self, file: &str, commands: &[&str]) {
        let mut io = Command::new("qemu-io");
        for command in commands {
            io.args(["-c", command]);
        }
        let told = io.arg(file).current_dir(self.0.path()).output().unwrap();
        assert!(
            told.status.success(),
            "{commands:?}: {}",
            String::from_utf8_lossy(&told.stderr)
        );
    }

    /// A file of the directory, as a disk in memory.
    pub(crate) fn load(&self, name: &str) -> InMemory {
        load(&self.path(name))
    }

    /// Checks an image in memory, which has no leak and no error unless `leaks` are expected.
    pub(crate) fn check(&self, disk: &InMemory, leaks: bool) {
        fs::write(self.path("checked.qcow2"), disk.contents()).unwrap();
        let told = Command::new("qemu-img")
            .args(["check", "checked.qcow2"])
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&told.stdout),
            String::from_utf8_lossy(&told.stderr)
        );
        let code = told.status.code().unwrap();
        assert!(code == 0 || (leaks && code == 3), "qemu-img check says {code}: {text}");
    }

    /// What QEMU reads from an image in memory, at most `len` bytes.
    pub(crate) fn read_by_qemu(&self, disk: &InMemory) -> Vec<u8> {
        fs::write(self.path("read.qcow2"), disk.contents()).unwrap();
        self.run("qemu-img convert -O raw read.qcow2 read.raw");
        fs::read(self.path("read.raw")).unwrap()
    }
}

fn load(path: &Path) -> InMemory {
    let mut bytes = fs::read(path).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    InMemory::holding(bytes, Access::ReadWrite)
}

/// Opens an image in memory.
pub(crate) fn open(file: &InMemory, backing: Option<Arc<dyn Disk>>) -> Arc<Qcow2Disk> {
    open_on(Arc::new(file.clone()), backing)
}

/// Opens an image on any disk.
pub(crate) fn open_on(file: Arc<dyn Disk>, backing: Option<Arc<dyn Disk>>) -> Arc<Qcow2Disk> {
    let options = Qcow2Options {
        backing,
        ..Qcow2Options::named("test.qcow2")
    };
    block_on(Qcow2Disk::open(file, options)).unwrap()
}

/// All that a guest sees.
pub(crate) async fn read_all(io: &dyn DiskIo) -> Vec<u8> {
    let size = io.geometry().size_bytes;
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < size {
        let len = (size - at).min(1 << 20);
        bytes.extend(read(io, at, len as usize).await);
        at += len;
    }
    bytes
}

pub(crate) async fn read(io: &dyn DiskIo, at: u64, len: usize) -> Vec<u8> {
    let (result, bufs) = io.read(at, vec![IoBuf::heap(len, 1).unwrap()]).await;
    result.unwrap();
    bufs[0].to_vec()
}

pub(crate) async fn write(io: &dyn DiskIo, at: u64, bytes: &[u8]) {
    let (result, _) = io.write(at, vec![IoBuf::from_bytes(bytes).unwrap()]).await;
    result.unwrap();
}
