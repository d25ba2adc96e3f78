//! From a path to a chain.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use disk::probe::{Format, Sample};
use spec::DiskFormat;

use crate::chain::{Chain, DataFile, Layer};
use crate::policy::{AccessError, Policy, Roots, named_by};
use crate::references::{Backing, ReferenceError, References};

/// Why a path does not lead to a chain. Every message names the image that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A file is not opened.
    #[error("image {name} is not opened")]
    Access {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: AccessError,
    },
    /// The path can not be made absolute.
    #[error("there is no current directory to find image {name} from: give an absolute path")]
    Path {
        /// The path.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content can not be judged.
    #[error("image {name} can not be read to find out its format")]
    Probe {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content is of another format.
    #[error("image {name} is {format}, which is no disk for a machine: convert or unpack it first")]
    Format {
        /// Its path.
        name: String,
        /// What it is.
        format: Format,
    },
    /// Its header is no good.
    #[error("image {name} can not be used")]
    Header {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: ReferenceError,
    },
    /// The backing image is reached by a network protocol or the like.
    #[error("image {name} wants a backing image by {protocol}: only files are supported, so rebase it onto one")]
    Protocol {
        /// Path of the image that wants it.
        name: String,
        /// The protocol.
        protocol: String,
    },
    /// The backing image is of an unknown kind.
    #[error("image {name} says that its backing image is {format}, which is not supported: convert that, and rebase")]
    BackingFormat {
        /// Path of the image that says so.
        name: String,
        /// What it says.
        format: String,
    },
    /// A backing image whose format nobody recorded leads on to further files.
    #[error(
        "image {name} does not record the format of its backing image, which refers to other files: if that is right, record \
         it with qemu-img rebase -u -F qcow2"
    )]
    Guessed {
        /// Path of the image that does not record it.
        name: String,
    },
    /// External data file, against the policy.
    #[error("image {name} keeps its data in another file, which is not allowed here: convert it to an image by itself")]
    DataFile {
        /// Its path.
        name: String,
    },
    /// External data file, without a name.
    #[error("image {name} keeps its data in another file and does not say in which: amend it with qemu-img")]
    DataFileUnnamed {
        /// Its path.
        name: String,
    },
    /// The chain comes back to an image it has passed.
    #[error("image {name} is its own backing image, or its own data file, in the end")]
    Loop {
        /// Path of the image that was met again.
        name: String,
    },
    /// The chain is too long.
    #[error("the chain below image {name} has more than {layers_max} images: commit some")]
    TooDeep {
        /// The top image.
        name: String,
        /// The limit.
        layers_max: usize,
    },
}

/// Opens the image at `path` and all that it is backed by, as `policy` allows. Takes no locks. Blocks.
///
/// # Errors
/// Something on the way is not allowed, not there, or of no supported format.
pub fn resolve(path: &Path, policy: &Policy) -> Result<Chain, ResolveError> {
    let name = path.display().to_string();
    let path = std::path::absolute(path).map_err(|source| ResolveError::Path {
        name: name.clone(),
        source,
    })?;
    let roots = Roots::open(&policy.directories).map_err(|source| ResolveError::Access {
        name: name.clone(),
        source,
    })?;
    let mut walk = Walk {
        policy,
        roots,
        seen: HashSet::new(),
    };
    let (top, mut next) = walk.layer(&path, policy.format, 0)?;
    let mut below = Vec::new();
    while let Some((path, format)) = next {
        if below.len() + 1 >= policy.layers_max {
            return Err(ResolveError::TooDeep {
                name,
                layers_max: policy.layers_max,
            });
        }
        let from = below.last().unwrap_or(&top).name.clone();
        let layer;
        (layer, next) = walk.layer(&path, format, below.len() + 1)?;
        if format.is_none() && (next.is_some() || layer.data_file.is_some()) {
            return Err(ResolveError::Guessed { name: from });
        }
        below.push(layer);
    }
    Ok(Chain::new(top, below))
}

/// A file to go on with, and its format if that is recorded.
type Next = Option<(PathBuf, Option<DiskFormat>)>;

struct Walk<'a> {
    policy: &'a Policy,
    roots: Roots,
    seen: HashSet<(u64, u64)>,
}

impl Walk<'_> {
    fn layer(&mut self, path: &Path, format: Option<DiskFormat>, depth: usize) -> Result<(Layer, Next), ResolveError> {
        let name = path.display().to_string();
        let writable = depth < self.policy.writable_layers;
        let file = self.open(path, writable)?;
        let format = match format {
            Some(format) => format,
            None => format_of(&file, &name)?,
        };
        let references = References::read(&file, format).map_err(|source| ResolveError::Header {
            name: name.clone(),
            source,
        })?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let data_file = match references.data_file {
            None => None,
            Some(_) if !self.policy.data_files => return Err(ResolveError::DataFile { name }),
            Some(None) => return Err(ResolveError::DataFileUnnamed { name }),
            Some(Some(data)) => {
                let path = file_named(&name, directory, &data)?;
                Some(DataFile {
                    name: path.display().to_string(),
                    file: self.open(&path, writable)?,
                })
            }
        };
        let next = match references.backing {
            None => None,
            Some(Backing { name: backing, format }) => {
                let path = file_named(&name, directory, &backing)?;
                Some((path, backing_format(&name, format.as_deref())?))
            }
        };
        let layer = Layer {
            name,
            format,
            file,
            writable,
            data_file,
        };
        Ok((layer, next))
    }

    fn open(&mut self, path: &Path, writable: bool) -> Result<File, ResolveError> {
        let name = path.display().to_string();
        let opened = self.roots.file(path, writable);
        let opened = opened.map_err(|source| ResolveError::Access {
            name: name.clone(),
            source,
        })?;
        if self.seen.insert(opened.identity) {
            Ok(opened.file)
        } else {
            Err(ResolveError::Loop { name })
        }
    }
}

fn file_named(image: &str, directory: &Path, name: &str) -> Result<PathBuf, ResolveError> {
    named_by(directory, name.as_bytes()).map_err(|protocol| ResolveError::Protocol {
        name: image.to_owned(),
        protocol,
    })
}

fn backing_format(image: &str, format: Option<&str>) -> Result<Option<DiskFormat>, ResolveError> {
    match format {
        None => Ok(None),
        // QEMU's drivers for files and devices give their bytes as they are.
        Some("raw" | "file" | "host_device") => Ok(Some(DiskFormat::Raw)),
        Some("qcow2") => Ok(Some(DiskFormat::Qcow2)),
        Some(other) => Err(ResolveError::BackingFormat {
            name: image.to_owned(),
            format: other.to_owned(),
        }),
    }
}

fn format_of(file: &File, name: &str) -> Result<DiskFormat, ResolveError> {
    let sample = Sample::of_file(file).map_err(|source| ResolveError::Probe {
        name: name.to_owned(),
        source,
    })?;
    match sample.format() {
        Format::Qcow2 => Ok(DiskFormat::Qcow2),
        format if format.is_plain() => Ok(DiskFormat::Raw),
        format => Err(ResolveError::Format {
            name: name.to_owned(),
            format,
        }),
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
