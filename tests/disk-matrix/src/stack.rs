//! The files of one image, as the harness made them: nothing has to be found out by opening them.

use std::path::{Path, PathBuf};

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// As QEMU's programs call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// One file.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
}

/// An image with all it needs.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The image first, then its backing, and so on.
    pub layers: Vec<Layer>,
    /// The file the image keeps its data in, if that is another.
    pub data_file: Option<PathBuf>,
}

impl Stack {
    /// The image without its backing.
    pub fn top(&self) -> &Path {
        self.layers.first().map_or(Path::new(""), |layer| &layer.path)
    }
}
