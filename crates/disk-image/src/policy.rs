//! Which files an image may lead to.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use spec::DiskFormat;

/// Layers of the longest chain that is followed unless the policy says otherwise. Each costs memory and a lookup per read.
pub const LAYERS_MAX: usize = 32;

/// Which files an image may lead to, and how they are opened.
///
/// Nothing outside of the directories is opened, whatever an image or a symbolic link says: links below them are not followed at
/// all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where images may be: these directories and all below them.
    pub directories: Vec<PathBuf>,
    /// The format of the top image, where it was recorded. Without, its content decides; see [`disk::probe`] for why that is for
    /// images that come in, and for nothing else.
    pub format: Option<DiskFormat>,
    /// How many layers, from the top, are opened for writing: 0 to look, 1 to use, 2 to commit.
    pub writable_layers: usize,
    /// Most layers of a chain.
    pub layers_max: usize,
    /// Whether external data files are followed.
    pub data_files: bool,
}

impl Policy {
    /// Read-only, format by content, no data files.
    pub fn within(directories: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            directories: directories.into_iter().map(Into::into).collect(),
            format: None,
            writable_layers: 0,
            layers_max: LAYERS_MAX,
            data_files: false,
        }
    }
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not below any directory of the policy.
    #[error("it is outside of the directories for images ({})", show(.0))]
    Outside(Vec<PathBuf>),
    /// A directory of the policy itself can not be used.
    #[error("directory {} for images can not be opened", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A symbolic link, somewhere on the way.
    #[error("there is a symbolic link on the way: give the path of the image itself")]
    Link,
    /// It can not be opened.
    #[error("it can not be opened")]
    Open(#[source] io::Error),
    /// A directory, pipe …
    #[error("it is neither a regular file nor a block device")]
    NotAFile,
}

fn show(directories: &[PathBuf]) -> String {
    let names: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// A directory of the policy, open.
struct Root {
    /// As it was given, and without links: images are found under either name.
    names: [PathBuf; 2],
    fd: OwnedFd,
}

/// The directories of a policy, open.
pub(crate) struct Roots {
    roots: Vec<Root>,
    given: Vec<PathBuf>,
}

/// A file, and what tells it from all others.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) identity: (u64, u64),
}

impl Roots {
    pub(crate) fn open(directories: &[PathBuf]) -> Result<Self, AccessError> {
        let root = |path: &PathBuf| {
            let failed = |source| AccessError::Directory {
                path: path.clone(),
                source,
            };
            let real = path.canonicalize().map_err(failed)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(CWD, &real, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
            let given = normalized(&std::path::absolute(path).map_err(failed)?);
            Ok(Root {
                names: [given, real],
                fd,
            })
        };
        Ok(Self {
            roots: directories.iter().map(root).collect::<Result<_, _>>()?,
            given: directories.to_vec(),
        })
    }

    /// Opens an absolute path if it lies below one of the directories.
    pub(crate) fn file(&self, path: &Path, writable: bool) -> Result<Opened, AccessError> {
        let path = normalized(path);
        let found = self.roots.iter().find_map(|root| {
            let below = root.names.iter().find_map(|name| path.strip_prefix(name).ok())?;
            Some((root, below))
        });
        let Some((root, below)) = found.filter(|(_, below)| !below.as_os_str().is_empty()) else {
            return Err(AccessError::Outside(self.given.clone()));
        };
        let mode = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        // Not waiting for the other end of a pipe.
        let flags = mode | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(&root.fd, below, flags, Mode::empty(), resolve);
        let fd = opened.map_err(|errno| match errno {
            Errno::LOOP => AccessError::Link,
            Errno::XDEV => AccessError::Outside(self.given.clone()),
            errno => AccessError::Open(errno.into()),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| AccessError::Open(errno.into()))?;
        let identity = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => (stat.st_dev, stat.st_ino),
            // Several nodes may mean one device. No file system has this number.
            FileType::BlockDevice => (u64::MAX, stat.st_rdev),
            _ => return Err(AccessError::NotAFile),
        };
        rustix::fs::fcntl_setfl(&fd, mode).map_err(|errno| AccessError::Open(errno.into()))?;
        Ok(Opened {
            file: fd.into(),
            identity,
        })
    }
}

/// The path without `.` and `..`. The same as the kernel's answer where no link is followed.
fn normalized(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => out.push(component),
        }
    }
    out
}

/// Where an image in `directory` means a file to be that it calls `name`; `Err` with the protocol if it means no file.
pub(crate) fn named_by(directory: &Path, name: &[u8]) -> Result<PathBuf, String> {
    // As QEMU has it: what stands before a colon that no slash precedes is a protocol.
    let colon = name.iter().position(|&byte| byte == b':');
    let slash = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    let name = match colon {
        Some(colon) if colon < slash => match name.split_at_checked(colon) {
            Some((b"file", rest)) => rest.get(1..).unwrap_or_default(),
            Some((protocol, _)) => return Err(String::from_utf8_lossy(protocol).into_owned()),
            None => name,
        },
        _ => name,
    };
    Ok(directory.join(OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image_unless_they_are_absolute() {
        let named = |name: &str| named_by(Path::new("/pool/vm"), name.as_bytes());
        assert_eq!(named("base.qcow2"), Ok("/pool/vm/base.qcow2".into()));
        assert_eq!(named("./a:b"), Ok("/pool/vm/./a:b".into()));
        assert_eq!(named("file:base"), Ok("/pool/vm/base".into()));
        assert_eq!(named("/etc/shadow"), Ok("/etc/shadow".into()));
        assert_eq!(named("nbd://host/disk"), Err("nbd".to_owned()));
        assert_eq!(named("json:{\"driver\":\"file\"}"), Err("json".to_owned()));
        assert_eq!(normalized(Path::new("/pool/./vm/../../etc/x")), Path::new("/etc/x"));
        assert_eq!(normalized(Path::new("/../..")), Path::new("/"));
    }
}
