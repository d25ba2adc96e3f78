//! What is looked for in layers, and why a layer is not taken in.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layer::LayerError;
use crate::{ImageDigest, ImportError, PullError};

/// Largest kernel, bytes; distribution kernels are 10 MiB, a vmlinux with symbols 700 MiB.
const KERNEL_MAX: u64 = 1 << 30;
/// Largest initrd, bytes; installers reach a few hundred MiB.
const INITRD_MAX: u64 = 2 << 30;
/// Longest command line file, bytes; x86 Linux takes 2048 (`COMMAND_LINE_SIZE`).
pub(crate) const CMDLINE_MAX: u64 = 4096;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Disk,
    Kernel,
    Initrd,
    Cmdline,
}

impl Role {
    /// What a file at `path` is for, if it is for anything.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let (directory, name) = path.split_once('/')?;
        if name.contains('/') {
            return None;
        }
        match directory {
            "disk" => {
                let (stem, extension) = name.rsplit_once('.')?;
                (!stem.is_empty() && matches!(extension, "qcow2" | "raw" | "img")).then_some(Role::Disk)
            }
            "boot" if name.starts_with("vmlinuz") || name.starts_with("vmlinux") => Some(Role::Kernel),
            "boot" if name.starts_with("initrd") || name.starts_with("initramfs") => Some(Role::Initrd),
            "boot" if name == "cmdline" => Some(Role::Cmdline),
            _ => None,
        }
    }

    /// How long such a file may be, bytes; a disk `max_disk_bytes`.
    pub(crate) const fn limit_bytes(self, max_disk_bytes: u64) -> u64 {
        match self {
            Self::Disk => max_disk_bytes,
            Self::Kernel => KERNEL_MAX,
            Self::Initrd => INITRD_MAX,
            Self::Cmdline => CMDLINE_MAX,
        }
    }
}

/// Why a layer is not taken in.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is no good, or its bytes do not come.
    Layer(LayerError),
    /// A file cannot be worked on.
    Write(PathBuf, io::Error),
    /// What is in it is refused.
    Judged(Box<ImportError>),
    /// The caller said so.
    Stopped,
}

impl Failure {
    pub(crate) fn reading(error: io::Error) -> Self {
        Self::Layer(match error.kind() {
            io::ErrorKind::UnexpectedEof => LayerError::Truncated,
            _ => LayerError::Damaged(error),
        })
    }

    /// As an error of an import that met it in layer `digest`.
    pub(crate) fn of_import(self, digest: &ImageDigest) -> ImportError {
        match self {
            Self::Judged(error) => *error,
            Self::Layer(source) => ImportError::Registry(PullError::Layer {
                digest: digest.clone(),
                source,
            }),
            Self::Write(path, source) => ImportError::io("write", path)(source),
            Self::Stopped => ImportError::Cancelled,
        }
    }
}
