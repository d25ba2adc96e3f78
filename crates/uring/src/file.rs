//! An open file as operations hold it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// An open file of one thread's executor. Clones are cheap and mean the same open file; every operation in flight holds one,
/// so that a descriptor number can not be reused under it.
#[derive(Clone)]
pub struct File(Rc<Open>);

/// Counted once per operation, by this thread only; the descriptor itself may be shared with other threads' rings.
struct Open {
    fd: Arc<OwnedFd>,
}

impl File {
    /// Another descriptor of the same open file, for an owner this crate knows nothing of.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn dup(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::from(fd.as_fd().try_clone_to_owned()?))
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
        Self(Rc::new(Open { fd }))
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
