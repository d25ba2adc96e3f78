//! The images that figures are measured on, made by `qemu-img` and kept in small pages of the page cache.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use rustix::fs::Advice;

/// Bytes of guest data in each image of mapped clusters.
pub(super) const DATA_BYTES: u64 = 512 << 20;
/// Bytes of guest data in the compressed image.
pub(super) const COMPRESSED_BYTES: u64 = 128 << 20;

/// Where the images are.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes all images that measurements read, in `dir`.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let files = Self { dir: dir.to_path_buf() };
        let raw = files.path("data.raw");
        write_data(&raw, DATA_BYTES)?;
        let small = files.path("small.raw");
        write_data(&small, COMPRESSED_BYTES)?;
        qemu_img(
            &["convert", "-f", "raw", "-O", "qcow2"],
            &[&raw, &files.path("mapped.qcow2")],
        )?;
        // Nobody writes to this one.
        qemu_img(
            &["convert", "-f", "raw", "-O", "qcow2"],
            &[&raw, &files.path("kept.qcow2")],
        )?;
        qemu_img(
            &["convert", "-f", "raw", "-O", "qcow2", "-c"],
            &[&small, &files.path("compressed.qcow2")],
        )?;
        let mapped = files.path("mapped.qcow2").display().to_string();
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-b", &mapped, "-F", "qcow2"],
            &[&files.path("overlay.qcow2")],
        )?;
        qemu_img_sized(
            &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"],
            &files.path("huge.qcow2"),
            1 << 40,
        )?;
        Ok(files)
    }

    /// A file by name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Brings a file into the page cache page by page.
    ///
    /// Read as usual, ext4 caches it in large folios, in which a write of 4 KiB costs ten times as much: that would measure the
    /// host's page cache instead of the engines, and only in runs after the one that read the file.
    pub(super) fn warm(&self, name: &str) -> Result<()> {
        let file = File::open(self.path(name))?;
        file.sync_all()?;
        let whole = NonZeroU64::new(file.metadata()?.len());
        rustix::fs::fadvise(&file, 0, whole, Advice::DontNeed)?;
        rustix::fs::fadvise(&file, 0, whole, Advice::Random)?;
        let mut page = vec![0; 4096];
        let mut at = 0;
        while file.read_at(&mut page, at)? > 0 {
            at += 4096;
        }
        Ok(())
    }

    /// An empty image for one measurement, of this size.
    pub(super) fn fresh(&self, size_bytes: u64) -> Result<PathBuf> {
        let path = self.path("fresh.qcow2");
        let _ = fs::remove_file(&path);
        qemu_img_sized(&["create", "-q", "-f", "qcow2"], &path, size_bytes)?;
        Ok(path)
    }
}

/// Half of each 64 KiB compresses well, half not at all.
fn write_data(path: &Path, bytes: u64) -> Result<()> {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = if word / 4096 % 2 == 0 { state } else { word / 512 };
        file.write_all(&value.to_le_bytes())?;
    }
    file.flush()?;
    Ok(())
}

/// Runs `qemu-img` with words and paths.
pub(super) fn qemu_img(words: &[&str], paths: &[&Path]) -> Result<()> {
    let status = Command::new("qemu-img").args(words).args(paths).status()?;
    ensure!(status.success(), "qemu-img {words:?} {paths:?} ended with {status}");
    Ok(())
}

fn qemu_img_sized(words: &[&str], path: &Path, size_bytes: u64) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(words)
        .arg(path)
        .arg(size_bytes.to_string())
        .status()?;
    ensure!(
        status.success(),
        "qemu-img {words:?} {} ended with {status}",
        path.display()
    );
    Ok(())
}
