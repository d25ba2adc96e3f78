//! The payload: a directory that becomes the lab host's second disk, mounted at `/payload`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools::run;

/// Room on the payload disk above what is put there, in bytes: file system structures.
const SLACK_BYTES: u64 = 32 << 20;

/// Takes what comes through the pulse port (see `Host::pulse`): a port that nobody reads does not interrupt.
const READ_PULSE: &str = "(cat < /dev/virtio-ports/karat.pulse > /dev/null 2>&1 &)";

/// A payload in the making.
pub struct Payload {
    dir: PathBuf,
}

impl Payload {
    /// An empty payload in `dir`, which is cleared.
    pub fn new(dir: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
        }
        fs::create_dir_all(dir.join("bin")).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Puts the file `from` at `to` (a path inside the payload). Hard-linked where possible.
    pub fn add(&mut self, from: &Path, to: &str) -> Result<&mut Self> {
        let to = self.dir.join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::hard_link(from, &to)
            .or_else(|_| fs::copy(from, &to).map(drop))
            .with_context(|| format!("cannot put {} into the payload", from.display()))?;
        Ok(self)
    }

    /// Puts all files below the directory `from` under `to`.
    pub fn add_tree(&mut self, from: &Path, to: &str) -> Result<&mut Self> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let path = entry?.path();
            let to = format!("{to}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() {
                self.add_tree(&path, &to)?;
            } else {
                self.add(&path, &to)?;
            }
        }
        Ok(self)
    }

    /// Sets what runs in the lab host: a bash script. `/payload/bin` is on its search path, `/results` is its working directory.
    pub fn script(&mut self, text: &str) -> Result<&mut Self> {
        let path = self.dir.join("run");
        let text = text.strip_prefix("#!/bin/bash\n").unwrap_or(text);
        fs::write(&path, format!("#!/bin/bash\n{READ_PULSE}\n{text}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(self)
    }

    /// Makes the disk image.
    pub fn write(&self, image: &Path) -> Result<()> {
        let bytes = size_of(&self.dir)? + SLACK_BYTES;
        let _ = fs::remove_file(image);
        fs::File::create(image)?.set_len(bytes.next_multiple_of(1 << 20))?;
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args([
            "-q",
            "-t",
            "ext4",
            "-L",
            "karat-payload",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-N",
            "4096",
            "-d",
        ]);
        run(mke2fs.arg(&self.dir).arg(image))
    }
}

fn size_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() {
            size_of(&entry.path())?
        } else {
            about.len()
        };
    }
    Ok(bytes)
}
