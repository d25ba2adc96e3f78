//! What scenarios run with.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Programs and guest files, as the lab host or a bare-metal host has them.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Directory with `karatd`, `karat` and `karat-vmm`.
    pub programs: PathBuf,
    /// Directory with the stock guest: `vmlinuz` (bzImage), `vmlinux` (ELF), `initrd`, and `initrd-disk` with tools for disks.
    pub guest: PathBuf,
    /// Directory for what scenarios write: state directories, disks. Needs some 4 GiB.
    pub work: PathBuf,
}

/// Kernel files of the stock guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// As distributions ship it.
    BzImage,
    /// The ELF file inside.
    Vmlinux,
}

impl Kernel {
    /// Name of its file in [`Environment::guest`].
    pub const fn file(self) -> &'static str {
        match self {
            Self::BzImage => "vmlinuz",
            Self::Vmlinux => "vmlinux",
        }
    }
}

impl Environment {
    /// Checks that all that scenarios need is there.
    pub fn check(&self) -> anyhow::Result<()> {
        let programs = ["karatd", "karat", "karat-vmm"].map(|name| self.programs.join(name));
        let guest = ["vmlinuz", "vmlinux", "initrd", "initrd-disk"].map(|name| self.guest.join(name));
        for path in programs.iter().chain(&guest) {
            ensure!(path.is_file(), "{} is missing", path.display());
        }
        std::fs::create_dir_all(&self.work).with_context(|| format!("can not make {}", self.work.display()))
    }

    /// A program's path.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Puts a guest file where a daemon lets users name files.
    pub(crate) fn install(&self, name: &str, files: &Path) -> anyhow::Result<PathBuf> {
        let to = files.join(name);
        let from = self.guest.join(name);
        std::fs::copy(&from, &to).with_context(|| format!("can not copy {} to {}", from.display(), to.display()))?;
        Ok(to)
    }
}
