//! Descriptor chains, checked.

use guestmem::{GuestAddress, GuestMemory, GuestRam, IoBuf};
use virtio_queue::DescriptorChain;

use crate::fault::RingError;
use crate::scatter::Scatter;

/// Most buffers of one chain. The specification's limit is the queue size; drivers exceed it with indirect tables by a
/// little, a thousand is what Linux allows itself (`VIRTQUEUE_MAX_SIZE` of QEMU).
const BUFFERS_MAX: usize = 1024;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length, bytes; never zero.
    pub len: u32,
}

/// A descriptor chain: what the driver lets the device read, then what it lets it write.
///
/// Checked: it ends, has at most 1024 buffers of less than 4 GiB together, and no readable buffer after a writable one. Not
/// checked: whether the buffers are RAM; [`Chain::readable`] and [`Chain::writable`] do that. Empty buffers are left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names the chain in [`crate::VirtQueue::push`].
    pub head: u16,
    /// Device-readable buffers.
    pub from_driver: Vec<Segment>,
    /// Device-writable buffers.
    pub to_driver: Vec<Segment>,
}

impl Chain {
    pub(crate) fn collect(chain: DescriptorChain<&GuestRam>) -> Result<Self, RingError> {
        let head = chain.head_index();
        let bad = |why| RingError::BadChain { head, why };
        let mut found = Self {
            head,
            from_driver: Vec::new(),
            to_driver: Vec::new(),
        };
        // The iterator ends early where a chain is broken: then the last descriptor it gave says that more was to come.
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count == BUFFERS_MAX {
                return Err(bad("has too many buffers"));
            }
            let writable = descriptor.is_write_only();
            if !writable && !found.to_driver.is_empty() {
                return Err(bad("has a readable buffer after a writable one"));
            }
            if descriptor.len() > 0 {
                let side = if writable {
                    &mut found.to_driver
                } else {
                    &mut found.from_driver
                };
                side.push(Segment {
                    gpa: descriptor.addr().0,
                    len: descriptor.len(),
                });
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(found)
        } else {
            Err(bad("is broken, circular or too long"))
        }
    }

    /// The device-readable buffers in guest RAM.
    pub fn readable(&self, memory: &GuestMemory) -> Result<Scatter, RingError> {
        self.locate(&self.from_driver, memory)
    }

    /// The device-writable buffers in guest RAM.
    pub fn writable(&self, memory: &GuestMemory) -> Result<Scatter, RingError> {
        self.locate(&self.to_driver, memory)
    }

    fn locate(&self, segments: &[Segment], memory: &GuestMemory) -> Result<Scatter, RingError> {
        let bad = || RingError::BadChain {
            head: self.head,
            why: "has a buffer outside of guest memory",
        };
        let locate = |segment: &Segment| {
            let len = usize::try_from(segment.len).map_err(|_| bad())?;
            IoBuf::guest(memory, GuestAddress(segment.gpa), len).map_err(|_| bad())
        };
        Ok(Scatter::from(
            segments.iter().map(locate).collect::<Result<Vec<_>, _>>()?,
        ))
    }
}
