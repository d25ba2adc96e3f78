//! What is behind a network card: the queues of a tap, or what stands in for one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tap::Offloads;

use super::config::{HEADER_SIZE, PAIRS_MAX};

/// Queues that move whole frames with a `virtio_net_hdr_v1` in front, one per system call.
pub trait Wire: Send + Sync {
    /// One non-blocking descriptor per queue pair; at least one, and always the same.
    fn queues(&self) -> &[Arc<OwnedFd>];

    /// Says what the guest does by itself in frames it receives.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Makes a queue take frames, or none. Called only where there are several.
    fn set_attached(&self, queue: BorrowedFd<'_>, attached: bool) -> io::Result<()>;
}

/// A tap of the host, by its queues.
pub struct TapWire(Vec<Arc<OwnedFd>>);

impl TapWire {
    /// Takes queues as [`tap::open`] gives them, at most 64, and sets them up for virtio.
    ///
    /// # Errors
    /// There are none, or the descriptors are no tap's.
    pub fn new(queues: Vec<OwnedFd>) -> io::Result<Self> {
        let queues: Vec<_> = queues.into_iter().take(PAIRS_MAX).map(Arc::new).collect();
        let first = queues.first().ok_or(io::ErrorKind::InvalidInput)?;
        // Cannot fail: 12.
        tap::set_header_size(first, i32::try_from(HEADER_SIZE).unwrap_or(12))?;
        for queue in &queues {
            let flags = rustix::fs::fcntl_getfl(queue)?;
            rustix::fs::fcntl_setfl(queue, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Self(queues))
    }
}

impl Wire for TapWire {
    fn queues(&self) -> &[Arc<OwnedFd>] {
        &self.0
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.0
            .first()
            .map_or(Ok(()), |queue| tap::set_offloads(queue.as_fd(), offloads))
    }

    fn set_attached(&self, queue: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
        tap::set_attached(queue, attached)
    }
}
