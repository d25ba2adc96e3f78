//! From layers to the few files an image is made of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use image_trust::{DigestSet, Digests, HashMethod};

use crate::layer::{self, Compression, LayerError};
use crate::sparse::SparseWriter;
use crate::tape::{Entry, Kind, Tape};
use crate::{ImageDigest, PullError};

/// Largest kernel, bytes; distribution kernels are 10 MiB, a vmlinux with symbols 700 MiB.
const KERNEL_MAX: u64 = 1 << 30;
/// Largest initrd, bytes; installers reach a few hundred MiB.
const INITRD_MAX: u64 = 2 << 30;
/// Longest command line file, bytes; x86 Linux takes 2048 (`COMMAND_LINE_SIZE`).
const CMDLINE_MAX: u64 = 4096;
/// Most candidates kept at once.
const CANDIDATES_MAX: usize = 64;
/// Prefix of an OCI whiteout: the rest names what is removed (image specification 1.1, "whiteouts").
const WHITEOUT: &str = ".wh.";
/// An OCI opaque whiteout: the directory's earlier content is removed.
const OPAQUE: &str = ".wh..wh..opq";

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Disk,
    Kernel,
    Initrd,
    Cmdline,
}

/// A file taken out of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    role: Role,
    layer: usize,
    /// Path in the image.
    pub(crate) path: String,
    /// Where it is now.
    pub(crate) file: PathBuf,
    /// Length, bytes.
    pub(crate) size: u64,
    /// Its digests, by the methods asked for.
    pub(crate) digests: DigestSet,
}

/// A layer on disk.
#[derive(Debug, Clone)]
pub(crate) struct LayerFile {
    pub(crate) digest: ImageDigest,
    pub(crate) compression: Compression,
    pub(crate) file: PathBuf,
}

/// What the layers came to.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) disk: Found,
    pub(crate) kernel: Option<Found>,
    pub(crate) initrd: Option<Found>,
    /// Content of `/boot/cmdline`, trimmed and checked.
    pub(crate) cmdline: Option<String>,
}

/// Collects candidates from one layer after the other, lowest first.
pub(crate) struct Unpacker<'a> {
    dir: &'a Path,
    methods: &'a [HashMethod],
    max_disk_bytes: u64,
    unpacked_left: u64,
    found: BTreeMap<String, Found>,
    layer: usize,
    files_made: u64,
    links: u64,
}

impl<'a> Unpacker<'a> {
    /// Files go to `dir`, which is the caller's to remove; digests by `methods` are made of each.
    pub(crate) fn new(dir: &'a Path, max_disk_bytes: u64, methods: &'a [HashMethod]) -> Self {
        Self {
            dir,
            methods,
            max_disk_bytes,
            unpacked_left: unpacked_max(max_disk_bytes),
            found: BTreeMap::new(),
            layer: 0,
            files_made: 0,
            links: 0,
        }
    }

    /// Takes in the next layer. `seen` gets the compressed bytes read and returns false to stop.
    pub(crate) fn add(&mut self, layer: &LayerFile, seen: &mut dyn FnMut(u64) -> bool) -> Result<(), PullError> {
        let file = File::open(&layer.file).map_err(PullError::io("read", &layer.file))?;
        let mut stopped = false;
        let mut watch = |bytes| {
            stopped = stopped || !seen(bytes);
            !stopped
        };
        let result = self.walk(layer::open(file, layer.compression, &mut watch));
        self.layer += 1;
        match result {
            Err(_) if stopped => Err(PullError::Cancelled),
            Err(Failure::Layer(source)) => Err(PullError::Layer {
                digest: layer.digest.clone(),
                source,
            }),
            Err(Failure::Write(path, source)) => Err(PullError::io("write", path)(source)),
            Ok(()) => Ok(()),
        }
    }

    fn walk(&mut self, stream: Box<dyn Read + '_>) -> Result<(), Failure> {
        let limit_bytes = unpacked_max(self.max_disk_bytes);
        let bounded = stream.take(self.unpacked_left);
        let mut tape = Tape::new(bounded);
        let mut result = self.entries(&mut tape);
        let mut rest = tape.into_inner();
        if result.is_ok() {
            // Padding after the end mark; and a compressed stream's checksum is only checked at its end.
            result = io::copy(&mut rest, &mut io::sink()).map(drop).map_err(Failure::reading);
        }
        self.unpacked_left = rest.limit();
        if self.unpacked_left == 0 {
            return Err(Failure::Layer(LayerError::TooLarge { limit_bytes }));
        }
        result
    }

    fn entries<R: Read>(&mut self, tape: &mut Tape<R>) -> Result<(), Failure> {
        while let Some(entry) = tape.next().map_err(Failure::reading)? {
            if self.whiteout(&entry.path)? {
                continue;
            }
            if entry.kind != Kind::Other || role_of(&entry.path).is_some() {
                self.forget(|found| found.path == entry.path || is_below(&found.path, &entry.path))?;
            }
            match (role_of(&entry.path), entry.kind) {
                (Some(role), Kind::File) => self.keep(role, &entry, tape)?,
                (Some(Role::Disk), Kind::Link) => self.links += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Applies a whiteout; false if the path is none. Only what earlier layers brought is removed.
    fn whiteout(&mut self, path: &str) -> Result<bool, Failure> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let layer = self.layer;
        if name == OPAQUE {
            self.forget(|found| found.layer < layer && is_below(&found.path, parent))?;
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            let gone = if parent.is_empty() {
                name.to_owned()
            } else {
                format!("{parent}/{name}")
            };
            self.forget(|found| found.layer < layer && (found.path == gone || is_below(&found.path, &gone)))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn forget(&mut self, gone: impl Fn(&Found) -> bool) -> Result<(), Failure> {
        for (_, found) in self.found.extract_if(.., |_, found| gone(found)) {
            std::fs::remove_file(&found.file).map_err(|error| Failure::Write(found.file, error))?;
        }
        Ok(())
    }

    fn keep<R: Read>(&mut self, role: Role, entry: &Entry, tape: &mut Tape<R>) -> Result<(), Failure> {
        let limit_bytes = match role {
            Role::Disk => self.max_disk_bytes,
            Role::Kernel => KERNEL_MAX,
            Role::Initrd => INITRD_MAX,
            Role::Cmdline => CMDLINE_MAX,
        };
        if entry.size > limit_bytes {
            return Err(Failure::Layer(LayerError::FileTooLarge {
                path: entry.path.clone(),
                size_bytes: entry.size,
                limit_bytes,
            }));
        }
        if self.found.len() >= CANDIDATES_MAX {
            return Err(Failure::Layer(LayerError::TooMany(CANDIDATES_MAX)));
        }
        let target = self.dir.join(format!("found-{}", self.files_made));
        self.files_made += 1;
        let (size, digests) = copy(tape, &target, self.methods)?;
        if size < entry.size {
            return Err(Failure::Layer(LayerError::Truncated));
        }
        let found = Found {
            role,
            layer: self.layer,
            path: entry.path.clone(),
            file: target,
            size,
            digests,
        };
        self.found.insert(entry.path.clone(), found);
        Ok(())
    }

    /// Decides which file is which.
    pub(crate) fn finish(self) -> Result<Contents, PullError> {
        let disk = self
            .pick(Role::Disk, "disk")?
            .ok_or(PullError::NoDisk { links: self.links })?;
        let cmdline = match self.pick(Role::Cmdline, "command line")? {
            Some(found) => {
                let bytes = std::fs::read(&found.file).map_err(PullError::io("read", found.file))?;
                Some(check_cmdline(&String::from_utf8_lossy(&bytes))?)
            }
            None => None,
        };
        Ok(Contents {
            disk,
            kernel: self.pick(Role::Kernel, "kernel")?,
            initrd: self.pick(Role::Initrd, "initrd")?,
            cmdline,
        })
    }

    fn pick(&self, role: Role, name: &'static str) -> Result<Option<Found>, PullError> {
        let all: Vec<&Found> = self.found.values().filter(|found| found.role == role).collect();
        let plain = |found: &&&Found| {
            role != Role::Disk && matches!(found.path.as_str(), "boot/vmlinuz" | "boot/initrd" | "boot/initrd.img")
        };
        match all.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some((*one).clone())),
            several => match several.iter().filter(plain).collect::<Vec<_>>().as_slice() {
                [one] => Ok(Some((**one).clone())),
                _ => Err(PullError::Ambiguous {
                    role: name,
                    paths: several.iter().map(|found| format!("/{}", found.path)).collect(),
                }),
            },
        }
    }
}

/// Trims a command line; refuses what a kernel would misread.
pub(crate) fn check_cmdline(text: &str) -> Result<String, PullError> {
    let text = text.trim();
    if text.len() as u64 >= CMDLINE_MAX / 2 {
        return Err(PullError::Cmdline("is longer than the 2047 bytes an x86 kernel takes"));
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(PullError::Cmdline(
            "holds more than one line, or characters other than printable ASCII",
        ));
    }
    Ok(text.to_owned())
}

/// Bytes all layers together may unpack to: room for a replaced disk.
fn unpacked_max(max_disk_bytes: u64) -> u64 {
    max_disk_bytes.saturating_mul(2).saturating_add(4 << 30)
}

enum Failure {
    Layer(LayerError),
    Write(PathBuf, io::Error),
}

impl Failure {
    fn reading(error: io::Error) -> Self {
        Self::Layer(match error.kind() {
            io::ErrorKind::UnexpectedEof => LayerError::Truncated,
            _ => LayerError::Damaged(error),
        })
    }
}

fn copy(from: &mut dyn Read, to: &Path, methods: &[HashMethod]) -> Result<(u64, DigestSet), Failure> {
    let mut digests = Digests::new(methods.iter().copied());
    let writing = |error| Failure::Write(to.to_path_buf(), error);
    let mut writer = SparseWriter::new(File::create_new(to).map_err(writing)?);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let piece = buffer.get(..count).unwrap_or_default();
                digests.update(piece);
                writer.write_all(piece).map_err(writing)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::reading(error)),
        }
    }
    let (_, length) = writer.finish(1).map_err(writing)?;
    Ok((length, digests.finish()))
}

fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn role_of(path: &str) -> Option<Role> {
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

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
