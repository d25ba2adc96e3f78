//! Built once per set of inputs: a directory with a stamp that holds the hash of what it was made from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The hash of everything an artefact is made from.
#[derive(Default)]
pub struct Inputs {
    hasher: Sha256,
}

impl Inputs {
    /// Adds a word, such as a package list or a version.
    pub fn text(mut self, text: &str) -> Self {
        self.hasher.update((text.len() as u64).to_le_bytes());
        self.hasher.update(text);
        self
    }

    /// Adds a file's content.
    pub fn file(self, path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.text(&text))
    }

    fn finish(self) -> String {
        self.hasher
            .finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// An artefact's directory under `target/lab`.
pub struct Artefact {
    /// Where its files are.
    pub dir: PathBuf,
    /// The hash of its inputs; an input of what is derived from it.
    pub key: String,
}

/// Gives the artefact `name`, built by `build(dir)` unless what is there was made from the same inputs.
pub fn artefact(name: &str, inputs: Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<Artefact> {
    let lab = crate::tools::target().join("lab");
    let dir = lab.join(name);
    let key = inputs.finish();
    let stamp = dir.join("inputs");
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == key) {
        return Ok(Artefact { dir, key });
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // One builder at a time; whoever waited may find it built. Released when the file is closed.
    let lock = fs::File::create(lab.join(format!("{name}.lock")))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("cannot lock the lab's images")?;
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == key) {
        return Ok(Artefact { dir, key });
    }
    let _ = fs::remove_file(&stamp);
    build(&dir)?;
    // Written last: a build that was cut short is built again.
    fs::write(&stamp, &key).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Artefact { dir, key })
}

/// A directory of this process below `target/lab/AREA`, cleared; what earlier processes left there under this name is removed.
pub fn own_dir(area: &str, name: &str) -> Result<PathBuf> {
    let area = crate::tools::target().join("lab").join(area);
    let mine = format!("{name}-{}", std::process::id());
    for entry in fs::read_dir(&area).into_iter().flatten().flatten() {
        let theirs = entry.file_name().to_string_lossy().into_owned();
        let process = theirs
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.parse::<u32>().ok());
        let Some(process) = process else { continue };
        if theirs == mine || !Path::new("/proc").join(process.to_string()).exists() {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot clear {}", entry.path().display()))?;
        }
    }
    let dir = area.join(mine);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
