//! What the tests of whole images share: a file as a disk, `qemu-img` and `qemu-io`, and kinds of images.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells what it skips"
)]

pub(crate) mod memory;

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use disk::{Disk, DiskError, DiskFuture, DiskIo, DiskOp, Geometry, Transferred, ZeroMode, total_len};
use disk_qcow2::ops::{CheckReport, Limits, check};
use guestmem::IoBuf;
use tempfile::TempDir;

/// Runs a future whose operations all complete at once.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("the future does not end")
}

/// A plain file, by blocking calls.
#[derive(Clone)]
pub(crate) struct FileDisk(Arc<File>);

impl FileDisk {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        Self(Arc::new(file.unwrap()))
    }

    fn now(&self) -> Geometry {
        Geometry::of_size(self.0.metadata().unwrap().len().next_multiple_of(512))
    }

    fn zero(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        self.now().check(op, offset, len)?;
        let zeroes = vec![0; 1 << 20];
        let mut at = offset;
        while at < offset + len {
            let piece = (offset + len - at).min(1 << 20);
            self.0.write_all_at(&zeroes[..piece as usize], at).unwrap();
            at += piece;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn name(&self) -> &str {
        "test file"
    }

    fn geometry(&self) -> Geometry {
        self.now()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for FileDisk {
    fn geometry(&self) -> Geometry {
        self.now()
    }

    fn read(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let result = self.now().check(DiskOp::Read, offset, total_len(&bufs));
        if result.is_ok() {
            let mut at = offset;
            for buf in &mut bufs {
                let mut bytes = vec![0; buf.len()];
                let mut done = 0;
                while done < bytes.len() {
                    match self.0.read_at(&mut bytes[done..], at + done as u64).unwrap() {
                        0 => break,
                        more => done += more,
                    }
                }
                buf.copy_from(0, &bytes).unwrap();
                at += bytes.len() as u64;
            }
        }
        Box::pin(async move { (result, bufs) })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let result = self.now().check(DiskOp::Write, offset, total_len(&bufs));
        if result.is_ok() {
            let mut at = offset;
            for buf in &bufs {
                self.0.write_all_at(&buf.to_vec(), at).unwrap();
                at += buf.len() as u64;
            }
        }
        Box::pin(async move { (result, bufs) })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.zero(DiskOp::Discard, offset, len) })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.zero(DiskOp::WriteZeroes, offset, len) })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            if self.now().check_grow(size_bytes)? {
                self.0.set_len(size_bytes).unwrap();
            }
            Ok(())
        })
    }
}

/// A queue of the file at `path`.
pub(crate) fn io(path: &Path) -> Rc<dyn DiskIo> {
    FileDisk::open(path).open_queue().unwrap()
}

/// Whether QEMU's tools are here; says so when they are not.
pub(crate) fn have_qemu() -> bool {
    let there = ["qemu-img", "qemu-io"].iter().all(|tool| {
        Command::new(tool)
            .arg("--version")
            .output()
            .is_ok_and(|out| out.status.success())
    });
    if !there {
        eprintln!("SKIPPED: qemu-img and qemu-io are not installed");
    }
    there
}

/// A directory for images, where QEMU's tools are here.
pub(crate) fn bench() -> Option<TempDir> {
    have_qemu().then(|| tempfile::tempdir().unwrap())
}

/// What this crate finds when it checks an image.
pub(crate) fn checked(path: &Path) -> CheckReport {
    block_on(check(&*io(path), Limits::default())).unwrap()
}

/// What a guest reads, by QEMU, of an image that may be marked as in use.
pub(crate) fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let (image, copy) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu_img(&["convert", "-U", "-O", "raw", image, copy]);
    std::fs::read(raw).unwrap()
}

/// Output of a command that has to succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

pub(crate) fn qemu_img(args: &[&str]) -> String {
    run("qemu-img", args)
}

/// Runs commands of `qemu-io` on an image, in the directory of the image.
pub(crate) fn qemu_io(path: &Path, commands: &[&str]) {
    // What a crash of the host would leave is not looked at here.
    let mut args = vec!["-t", "unsafe", "-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(path.to_str().unwrap());
    let out = run("qemu-io", &args);
    assert!(!out.contains("error") && !out.contains("failed"), "{commands:?}: {out}");
}

/// `qemu-img check` as JSON; it may find something wrong.
pub(crate) fn qemu_check(path: &Path) -> serde_json::Value {
    let out = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "--output=json", path.to_str().unwrap()])
        .output()
        .unwrap();
    serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)))
}

/// Fails unless QEMU finds nothing wrong, not even a leak.
pub(crate) fn assert_clean(path: &Path, what: &str) {
    let out = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", path.to_str().unwrap()])
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success(), "{what}: {text}");
}

/// Kinds of images that QEMU makes: name and options of `qemu-img create`.
pub(crate) const KINDS: &[(&str, &str)] = &[
    ("plain", "cluster_size=64k"),
    ("v2", "compat=0.10"),
    ("512", "cluster_size=512"),
    ("4k", "cluster_size=4k"),
    ("2m", "cluster_size=2M"),
    ("bits1", "refcount_bits=1"),
    ("bits2", "refcount_bits=2,cluster_size=512"),
    ("bits8", "refcount_bits=8,cluster_size=1k"),
    ("bits32", "refcount_bits=32"),
    ("bits64", "refcount_bits=64,cluster_size=512"),
    ("lazy", "lazy_refcounts=on"),
    ("extended", "extended_l2=on,cluster_size=16k"),
    ("zstd", "compression_type=zstd"),
    ("metadata", "preallocation=metadata,cluster_size=4k"),
    ("full", "preallocation=full,cluster_size=16k"),
];

/// Makes an image of 8 MiB of a kind, with data, zeroes, holes and compressed clusters in it.
pub(crate) fn make(dir: &Path, name: &str, options: &str) -> PathBuf {
    let path = dir.join(format!("{name}.qcow2"));
    let text = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text, "8M"]);
    qemu_io(
        &path,
        &[
            "write -P 1 0 300k",
            "write -P 2 1M 64k",
            "write -P 3 7M 1M",
            "write -z 2M 512k",
            "write -P 4 600k 1k",
            "discard 7M 256k",
        ],
    );
    if !options.contains("preallocation") {
        qemu_io(&path, &["write -c -P 5 4M 2M"]);
    }
    path
}
