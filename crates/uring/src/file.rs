//! An open file as operations hold it.

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

/// An open file of one thread's executor. Clones are cheap and mean the same open file; every operation in flight holds one,
/// so that a descriptor number can not be reused under it.
#[derive(Clone)]
pub struct File(Rc<Open>);

/// Counted once per operation, by this thread only; the descriptor itself may be shared with other threads' rings.
struct Open {
    fd: Arc<OwnedFd>,
    /// [`File::is_cached`], once it was asked for.
    is_cached: OnceCell<bool>,
}

impl File {
    /// Another descriptor of the same open file, for an owner this crate knows nothing of.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn dup(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::from(fd.as_fd().try_clone_to_owned()?))
    }

    /// Whether writes go to the page cache of a regular file, as the open file is now: asked for once.
    pub(crate) fn is_cached(&self) -> bool {
        *self.0.is_cached.get_or_init(|| {
            let fd = &self.0.fd;
            let is_regular = rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
            // Whoever asked for durable or direct writes waits for a device.
            let waits = OFlags::DIRECT | OFlags::SYNC | OFlags::DSYNC;
            is_regular && rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| !flags.intersects(waits))
        })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self::from(Arc::new(fd))
    }
}

impl From<Arc<OwnedFd>> for File {
    fn from(fd: Arc<OwnedFd>) -> Self {
        let is_cached = OnceCell::new();
        Self(Rc::new(Open { fd, is_cached }))
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        Self::from(OwnedFd::from(file))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.raw())
    }
}
