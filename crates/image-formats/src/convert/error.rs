//! Why an image could not be converted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use disk::probe::Format;

use crate::inspect::Refusal;

/// Why an image could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// There is no `qemu-img`.
    #[error("qemu-img is not installed; install package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)")]
    NoProgram,
    /// The source is refused.
    #[error(transparent)]
    Refused(Refusal),
    /// The source needs no conversion, or none is known.
    #[error("an image in {0} format is not converted")]
    NotConvertible(Format),
    /// It could not be run.
    #[error("qemu-img could not be run")]
    Run(#[source] sandbox::RunError),
    /// It did not like the image.
    #[error("qemu-img failed with status {status}: {message}")]
    Failed {
        /// Exit status.
        status: i32,
        /// What it said.
        message: String,
    },
    /// A limit or the kernel ended it.
    #[error("qemu-img was killed by signal {signal} (24: processor time, 25: file size, 9: memory): {message}")]
    Killed {
        /// The signal.
        signal: i32,
        /// What it had said.
        message: String,
    },
    /// The deadline passed.
    #[error("qemu-img took longer than the {} s allowed", limit.as_secs())]
    TooSlow {
        /// The deadline.
        limit: Duration,
    },
    /// What `qemu-img` sees is not what the inspection saw.
    #[error("qemu-img and the inspection do not agree on the image: {0}")]
    Disagreement(String),
    /// What was made is not what was wanted.
    #[error("qemu-img made something else than was asked for: {0}")]
    Output(String),
    /// The file system is full.
    #[error("no space left for the converted image: free some, or choose another store")]
    DiskFull,
    /// The caller asked for it.
    #[error("the conversion was cancelled")]
    Cancelled,
    /// A file can not be worked on.
    #[error("{} can not be used", .0.display())]
    File(PathBuf, #[source] io::Error),
}

impl ConvertError {
    /// A stable name for programs; the crate documents them.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoProgram => "no_converter",
            Self::Refused(refusal) => refusal.code(),
            Self::NotConvertible(_) => "not_convertible",
            Self::Run(_) | Self::Failed { .. } => "converter_failed",
            Self::Killed { .. } => "converter_killed",
            Self::TooSlow { .. } => "converter_too_slow",
            Self::Disagreement(_) => "size_disagreement",
            Self::Output(_) => "output_wrong",
            Self::DiskFull => "disk_full",
            Self::Cancelled => "cancelled",
            Self::File(..) => "file_unusable",
        }
    }

    pub(super) fn from_target(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::File(path.to_path_buf(), error),
        }
    }
}
