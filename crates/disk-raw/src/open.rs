//! Opening: what is accepted, and with which words the rest is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use disk::{Access, Discard, Disk, DiskError, DiskIo, Geometry};
use rustix::fs::OFlags;
use rustix::io::Errno;
use uring::blocking::{self, LockKind};

use crate::holder::Holders;
use crate::options::{CacheMode, Locking, RawOptions, Role};
use crate::queue::RawQueue;
use crate::store::Store;
use crate::target::{DirectRules, Kind, Target};

/// How often a lock that somebody holds is tried again, and after how long. A program that is just being started by a holder holds
/// it too, until it runs: microseconds, as a rule.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a raw image can not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path can not be opened.
    #[error("disk image {name} can not be opened")]
    Open {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The open file can not be looked at.
    #[error("disk image {name} can not be inspected")]
    Inspect {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else has it open in a way that excludes this one.
    #[error("disk image {name} is in use by {holders}: stop that first, or give this machine a copy")]
    InUse {
        /// The image.
        name: String,
        /// Who.
        holders: Holders,
    },
    /// Whether somebody else uses it can not be found out.
    #[error("disk image {name} can not be locked: put it on a file system with fcntl locks")]
    Lock {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, socket …
    #[error("disk image {name} is a {what}: give a regular file or a block device")]
    NotADisk {
        /// The image.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// The descriptor does not allow what the options ask for.
    #[error("disk image {name} was not opened for {needed}: open it so, or make the disk read-only")]
    Mode {
        /// The image.
        name: String,
        /// What is missing.
        needed: &'static str,
    },
    /// No sector, or a part of one at the end.
    #[error(
        "disk image {name} has {size_bytes} bytes, which is no positive multiple of its {sector_bytes}-byte sectors: \
         extend it with truncate"
    )]
    BadSize {
        /// The image.
        name: String,
        /// Its size.
        size_bytes: u64,
        /// Sector size asked for.
        sector_bytes: u32,
    },
    /// No direct I/O there.
    #[error("disk image {name} can not bypass the page cache on this file system: use cached mode")]
    NoDirect {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Direct I/O in larger units than the guest's sectors.
    #[error(
        "disk image {name} can bypass the page cache only in units of {needed_bytes} bytes: use cached mode or \
         {needed_bytes}-byte sectors"
    )]
    DirectUnit {
        /// The image.
        name: String,
        /// Smallest unit.
        needed_bytes: u32,
    },
}

/// A raw image in use. Holds its lock until it and all its queues are gone.
pub struct RawDisk {
    name: String,
    store: Arc<Store>,
}

impl RawDisk {
    /// Opens `path`. Blocks.
    ///
    /// # Errors
    /// It is not there, not allowed, no disk, in use, or not usable in this way.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, OpenError> {
        let write = options.access == Access::ReadWrite;
        let file = File::options().read(true).write(write).open(path);
        let file = file.map_err(|source| OpenError::Open {
            name: options.name.clone(),
            source,
        })?;
        Self::from_fd(file.into(), options)
    }

    /// Uses a descriptor that somebody else opened. Sets `O_DIRECT` as the options say and clears `O_APPEND` and `O_NONBLOCK`, for
    /// all descriptors of the same opening; the lock belongs to the opening, too. (Not with [`Locking::Look`].) Blocks.
    ///
    /// # Errors
    /// It is no disk, not open for what the options ask, in use, or not usable in this way.
    pub fn from_fd(fd: OwnedFd, mut options: RawOptions) -> Result<Self, OpenError> {
        if options.locking == Locking::Look {
            options.access = Access::ReadOnly;
            options.cache = cache_mode(fd.as_fd());
        }
        let name = || options.name.clone();
        let inspect = |source| OpenError::Inspect { name: name(), source };
        let look = || {
            let target = Target::inspect(fd.as_fd()).map_err(inspect)?;
            target.map_err(|kind| OpenError::NotADisk {
                name: name(),
                what: crate::target::describe(kind),
            })
        };
        let mut target = look()?;
        set_mode(fd.as_fd(), &options)?;
        if options.locking == Locking::Locked {
            take_lock(fd.as_fd(), &options)?;
            // Whoever held the lock until now may have made it longer.
            target = look()?;
        }
        let sector_bytes = options.sector.bytes();
        let size_bytes = match options.role {
            Role::Disk => target.size_bytes,
            Role::Container => target.size_bytes.next_multiple_of(u64::from(sector_bytes)),
        };
        let usable = options.role == Role::Container || size_bytes > 0;
        if !usable || !size_bytes.is_multiple_of(u64::from(sector_bytes)) {
            return Err(OpenError::BadSize {
                name: name(),
                size_bytes,
                sector_bytes,
            });
        }
        let direct = match options.cache {
            CacheMode::Cached => None,
            CacheMode::Direct => Some(direct_rules(fd.as_fd(), &options)?),
        };
        let discard = match (options.access, target.discard_granularity_bytes) {
            (Access::ReadWrite, Some(bytes)) => Discard::Supported {
                granularity_bytes: bytes.max(sector_bytes),
            },
            _ => Discard::Unsupported,
        };
        let geometry = Geometry {
            size_bytes,
            logical_sector_bytes: sector_bytes,
            physical_sector_bytes: target.physical_sector_bytes.max(sector_bytes),
            access: options.access,
            discard,
        };
        tracing::debug!(
            name = options.name,
            ?geometry,
            ?direct,
            block = target.kind == Kind::Block,
            "raw disk opened"
        );
        let store = Store::new(fd, target.kind, geometry, direct, options.role);
        Ok(Self {
            name: options.name,
            store: Arc::new(store),
        })
    }
}

#[cfg(test)]
impl RawDisk {
    pub(crate) fn forget_fallocate(&self) {
        self.store.forget_fallocate();
    }
}

impl Disk for RawDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.store.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(RawQueue::new(Arc::clone(&self.store))?))
    }
}

/// How the descriptor is used by others.
fn cache_mode(fd: BorrowedFd<'_>) -> CacheMode {
    match rustix::fs::fcntl_getfl(fd) {
        Ok(flags) if flags.contains(OFlags::DIRECT) => CacheMode::Direct,
        _ => CacheMode::Cached,
    }
}

/// Checks how the descriptor was opened, and sets what the options ask for.
fn set_mode(fd: BorrowedFd<'_>, options: &RawOptions) -> Result<(), OpenError> {
    let name = || options.name.clone();
    let inspect = |source: Errno| OpenError::Inspect {
        name: name(),
        source: source.into(),
    };
    let flags = rustix::fs::fcntl_getfl(fd).map_err(inspect)?;
    let mode = flags & OFlags::RWMODE;
    if mode == OFlags::WRONLY || flags.contains(OFlags::PATH) {
        return Err(OpenError::Mode {
            name: name(),
            needed: "reading",
        });
    }
    if mode == OFlags::RDONLY && options.access == Access::ReadWrite {
        return Err(OpenError::Mode {
            name: name(),
            needed: "writing",
        });
    }
    if options.locking == Locking::Look {
        return Ok(());
    }
    // Appending ignores offsets; non-blocking makes io_uring answer EAGAIN instead of waiting for the store.
    let mut wanted = flags - OFlags::APPEND - OFlags::NONBLOCK;
    wanted.set(OFlags::DIRECT, options.cache == CacheMode::Direct);
    if wanted == flags {
        return Ok(());
    }
    rustix::fs::fcntl_setfl(fd, wanted).map_err(|source| match options.cache {
        CacheMode::Direct => OpenError::NoDirect {
            name: name(),
            source: source.into(),
        },
        CacheMode::Cached => inspect(source),
    })
}

fn take_lock(fd: BorrowedFd<'_>, options: &RawOptions) -> Result<(), OpenError> {
    let kind = match options.access {
        Access::ReadWrite => LockKind::Exclusive,
        Access::ReadOnly => LockKind::Shared,
    };
    let busy = |error: &io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::AGAIN | Errno::ACCESS))
    };
    let mut locked = blocking::lock(fd, kind);
    for _ in 0..LOCK_TRIES {
        if !locked.as_ref().is_err_and(busy) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        locked = blocking::lock(fd, kind);
    }
    locked.map_err(|source| {
        let name = options.name.clone();
        if busy(&source) {
            let holders = Holders::of(fd);
            return OpenError::InUse { name, holders };
        }
        OpenError::Lock { name, source }
    })
}

fn direct_rules(fd: BorrowedFd<'_>, options: &RawOptions) -> Result<DirectRules, OpenError> {
    let name = options.name.clone();
    match DirectRules::discover(fd) {
        Ok(rules) if rules.offset > options.sector.bytes() => Err(OpenError::DirectUnit {
            name,
            needed_bytes: rules.offset,
        }),
        Ok(rules) => Ok(rules),
        Err(source) => Err(OpenError::NoDirect { name, source }),
    }
}
