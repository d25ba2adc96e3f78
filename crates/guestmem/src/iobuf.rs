//! Owned buffers for I/O: a piece of guest RAM, or memory of our own.
#![expect(
    unsafe_code,
    reason = "raw memory whose owner travels with it; every access is volatile or by the kernel"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use crate::memory::GuestMemory;

/// Why a buffer could not be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IoBufError {
    /// The range is not RAM, or not in one region.
    #[error("guest range {gpa:#x}+{len:#x} does not lie in one piece of guest memory")]
    NotInRam {
        /// First guest physical address.
        gpa: u64,
        /// Length, bytes.
        len: usize,
    },
    /// The alignment is no power of two, or the length is beyond what a process can have.
    #[error("no buffer can have {len} bytes aligned to {align}")]
    BadLayout {
        /// Length, bytes.
        len: usize,
        /// Alignment, bytes.
        align: usize,
    },
    /// The allocator has no memory left.
    #[error("no memory for a buffer of {len} bytes")]
    OutOfMemory {
        /// Length, bytes.
        len: usize,
    },
    /// More was to be copied than the buffer holds.
    #[error("bytes {offset}+{count} lie outside of a buffer of {len} bytes")]
    OutOfBounds {
        /// Where the copy was to start, bytes.
        offset: usize,
        /// How much was to be copied, bytes.
        count: usize,
        /// What the buffer holds, bytes.
        len: usize,
    },
}

/// Allocation shared by the parts of a split heap buffer.
struct HeapPages {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation has no ties to the thread that made it; `HeapPages` itself never looks into it, and the `IoBuf`s that
// do cover disjoint parts.
unsafe impl Send for HeapPages {}
// SAFETY: as above; sharing a `HeapPages` only shares the right to free it, which the last `Arc` does.
unsafe impl Sync for HeapPages {}

impl Drop for HeapPages {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout, and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

enum Owner {
    /// The guest's RAM, and where in it.
    Guest(GuestMemory, GuestAddress),
    /// Our own memory, kept for its `Drop`; `None` when there is none, for length 0.
    Heap(Option<Arc<HeapPages>>),
}

/// Bytes that a disk or a socket reads or writes: owned, movable between threads, and at one address for as long as they
/// live, so the kernel may use them while the `IoBuf` is kept.
///
/// Over guest RAM nothing is copied, and the guest may write at any time: what was read once may read differently the next
/// time. Therefore there is no `&[u8]`, only copies and the raw address. `Send` but not `Sync`.
pub struct IoBuf {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

// SAFETY: the memory is kept by `owner` (both kinds are `Send`), and `start` is used only through methods of this one value;
// guest RAM is open to races by its nature and only accessed by volatile copies, heap parts are disjoint.
unsafe impl Send for IoBuf {}

impl IoBuf {
    /// `len` bytes of guest RAM at `gpa`, without a copy. Keeps all of the guest's RAM mapped.
    pub fn guest(memory: &GuestMemory, gpa: GuestAddress, len: usize) -> Result<Self, IoBufError> {
        let not_in_ram = || IoBufError::NotInRam { gpa: gpa.0, len };
        let (region, offset) = memory.inner().to_region_addr(gpa).ok_or_else(not_in_ram)?;
        if len as u64 > region.len() - offset.0 {
            return Err(not_in_ram());
        }
        let host = region.get_host_address(offset).map_err(|_| not_in_ram())?;
        Ok(Self {
            start: NonNull::new(host).ok_or_else(not_in_ram)?,
            len,
            owner: Owner::Guest(memory.clone(), gpa),
        })
    }

    /// `len` zeroed bytes of our own, at a multiple of `align` (a power of two; 4096 suits direct I/O everywhere).
    pub fn heap(len: usize, align: usize) -> Result<Self, IoBufError> {
        let layout = Layout::from_size_align(len, align).map_err(|_| IoBufError::BadLayout { len, align })?;
        if len == 0 {
            return Ok(Self {
                start: NonNull::dangling(),
                len,
                owner: Owner::Heap(None),
            });
        }
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(IoBufError::OutOfMemory { len })?;
        Ok(Self {
            start,
            len,
            owner: Owner::Heap(Some(Arc::new(HeapPages { start, layout }))),
        })
    }

    /// A heap buffer, aligned for direct I/O, with these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IoBufError> {
        let mut buf = Self::heap(bytes.len(), 4096)?;
        buf.copy_from(0, bytes)?;
        Ok(buf)
    }

    /// Length, bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when the bytes are guest RAM.
    pub fn is_guest(&self) -> bool {
        matches!(self.owner, Owner::Guest(..))
    }

    /// The address for an `iovec`; good for [`IoBuf::len`] bytes while this value (or a part split off from it, for the
    /// part's bytes) is kept. Whoever has the kernel write there calls [`IoBuf::mark_written`] afterwards.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Tells the dirty log that the kernel (or a device model, through [`IoBuf::as_mut_ptr`]) wrote the first `count` bytes.
    /// Our own copies tell it themselves.
    pub fn mark_written(&self, count: usize) {
        self.mark_range_written(0, count);
    }

    /// Cuts off everything from `at` on, and returns it; both parts keep the memory. `at` past the end cuts off nothing.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        let at = at.min(self.len);
        let owner = match &self.owner {
            Owner::Guest(memory, gpa) => Owner::Guest(memory.clone(), GuestAddress(gpa.0 + at as u64)),
            Owner::Heap(pages) => Owner::Heap(pages.clone()),
        };
        // SAFETY: `at` is at most the length, so the result is in the same allocation or one past its end.
        let start = unsafe { self.start.add(at) };
        let len = self.len - at;
        self.len = at;
        Self { start, len, owner }
    }

    /// Undoes [`IoBuf::split_off`]: this buffer and `tail` as one.
    ///
    /// # Errors
    /// Gives both back if `tail` does not begin where this one ends, in the same memory.
    pub fn rejoin(self, tail: Self) -> Result<Self, (Self, Self)> {
        if !self.continues_in(&tail) {
            return Err((self, tail));
        }
        Ok(Self {
            len: self.len + tail.len,
            ..self
        })
    }

    /// Whether the bytes of both are one stretch of one owner's memory, which the owner of `self` keeps as a whole.
    fn continues_in(&self, tail: &Self) -> bool {
        let end = self.start.as_ptr().addr().checked_add(self.len);
        if end != Some(tail.start.as_ptr().addr()) {
            return false;
        }
        match (&self.owner, &tail.owner) {
            (Owner::Heap(Some(pages)), Owner::Heap(Some(others))) => Arc::ptr_eq(pages, others),
            (Owner::Guest(memory, gpa), Owner::Guest(_, next)) => {
                // Two mappings may be neighbours by chance: all of it has to be in one region of the first.
                let whole = Self::guest(memory, *gpa, self.len.saturating_add(tail.len));
                next.0.checked_sub(gpa.0) == Some(self.len as u64) && whole.is_ok_and(|buf| buf.start == self.start)
            }
            _ => false,
        }
    }

    /// Writes `bytes` at `offset`.
    pub fn copy_from(&mut self, offset: usize, bytes: &[u8]) -> Result<(), IoBufError> {
        self.check(offset, bytes.len())?;
        self.as_volatile_slice()
            .write_slice(bytes, offset)
            .map_err(|_| self.out_of_bounds(offset, bytes.len()))?;
        self.mark_range_written(offset, bytes.len());
        Ok(())
    }

    /// Reads into `bytes` from `offset`.
    pub fn copy_to(&self, offset: usize, bytes: &mut [u8]) -> Result<(), IoBufError> {
        self.check(offset, bytes.len())?;
        let count = bytes.len();
        self.as_volatile_slice()
            .read_slice(bytes, offset)
            .map_err(|_| self.out_of_bounds(offset, count))
    }

    /// All bytes, copied out as they are now.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // Cannot fail: the lengths are equal.
        let _ = self.copy_to(0, &mut bytes);
        bytes
    }

    /// Sets `count` bytes from `offset` to `value`.
    pub fn fill(&mut self, offset: usize, count: usize, value: u8) -> Result<(), IoBufError> {
        self.check(offset, count)?;
        let pattern = [value; 512];
        for start in (0..count).step_by(pattern.len()) {
            let piece = pattern.get(..count - start).unwrap_or(&pattern);
            self.as_volatile_slice()
                .write_slice(piece, offset + start)
                .map_err(|_| self.out_of_bounds(offset, count))?;
        }
        self.mark_range_written(offset, count);
        Ok(())
    }

    /// The buffer as `vm-memory` sees it. Writes through it are not told to the dirty log: see [`IoBuf::mark_written`].
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `start` is good for `len` bytes while `owner` lives, which the slice's lifetime is tied to; all other
        // accesses are volatile too, or the kernel's.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.len) }
    }

    fn check(&self, offset: usize, count: usize) -> Result<(), IoBufError> {
        match offset.checked_add(count) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.out_of_bounds(offset, count)),
        }
    }

    fn out_of_bounds(&self, offset: usize, count: usize) -> IoBufError {
        IoBufError::OutOfBounds {
            offset,
            count,
            len: self.len,
        }
    }

    fn mark_range_written(&self, offset: usize, count: usize) {
        let Owner::Guest(memory, gpa) = &self.owner else { return };
        let count = count.min(self.len.saturating_sub(offset));
        if let Some((region, start)) = memory.inner().to_region_addr(*gpa) {
            let start = usize::try_from(start.0).unwrap_or(usize::MAX);
            GuestMemoryRegion::bitmap(region).mark_dirty(start.saturating_add(offset), count);
        }
    }
}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("IoBuf");
        out.field("len", &self.len);
        if let Owner::Guest(_, gpa) = &self.owner {
            out.field("gpa", gpa);
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryConfig;

    fn memory(size_bytes: u64) -> GuestMemory {
        GuestMemory::new(MemoryConfig {
            size_bytes,
            hugepages: None,
            prefault: false,
        })
        .unwrap()
    }

    #[test]
    fn guest_buffers_are_the_guests_own_bytes_and_outlive_the_handle() {
        let memory = memory(1 << 20);
        memory.write_slice(b"hello", GuestAddress(0x1000)).unwrap();
        let mut buf = IoBuf::guest(&memory, GuestAddress(0x1000), 5).unwrap();
        assert_eq!(buf.to_vec(), b"hello");
        buf.copy_from(1, b"ol").unwrap();
        let mut seen = [0; 5];
        memory.read_slice(&mut seen, GuestAddress(0x1000)).unwrap();
        assert_eq!(&seen, b"hollo");
        drop(memory);
        buf.fill(0, 5, b'x').unwrap();
        assert_eq!(buf.to_vec(), b"xxxxx");
    }

    #[test]
    fn guest_ranges_are_checked_at_every_edge() {
        let memory = memory((4 << 30) + 4096);
        let hole = crate::layout::LOW_RAM_END;
        let make = |gpa, len| IoBuf::guest(&memory, GuestAddress(gpa), len).map(|buf| buf.len());
        assert_eq!(make(hole - 8, 8), Ok(8));
        for (gpa, len) in [(hole - 8, 9), (hole, 1), (u64::MAX, 1), (0, usize::MAX), (hole, 0)] {
            assert_eq!(make(gpa, len), Err(IoBufError::NotInRam { gpa, len }));
        }
    }

    #[test]
    fn heap_buffers_are_zeroed_and_aligned_and_split_into_disjoint_parts() {
        let mut head = IoBuf::heap(8192, 4096).unwrap();
        assert_eq!(head.as_mut_ptr() as usize % 4096, 0);
        assert!(head.to_vec().iter().all(|&b| b == 0));
        let mut tail = head.split_off(4096);
        tail.fill(0, 4096, 0xee).unwrap();
        assert!(head.to_vec().iter().all(|&b| b == 0));
        assert_eq!((head.len(), tail.len()), (4096, 4096));
        drop(head);
        assert!(tail.to_vec().iter().all(|&b| b == 0xee));
        assert!(tail.split_off(9999).is_empty());
    }

    #[test]
    fn split_parts_rejoin_and_strangers_do_not() {
        let memory = memory(1 << 20);
        for mut head in [
            IoBuf::heap(100, 1).unwrap(),
            IoBuf::guest(&memory, GuestAddress(0x1000), 100).unwrap(),
        ] {
            let start = head.as_mut_ptr();
            let mut middle = head.split_off(10);
            let tail = middle.split_off(20);
            let (head, tail) = head.rejoin(tail).expect_err("not neighbours");
            let whole = head.rejoin(middle.rejoin(tail).unwrap()).unwrap();
            assert_eq!((whole.len(), whole.as_mut_ptr()), (100, start));
        }
        let (low, high) = (
            IoBuf::guest(&memory, GuestAddress(0), 10).unwrap(),
            IoBuf::guest(&memory, GuestAddress(10), 10).unwrap(),
        );
        assert_eq!(low.rejoin(high).unwrap().len(), 20);
        let heap = IoBuf::heap(8, 1).unwrap();
        assert!(heap.rejoin(IoBuf::heap(8, 1).unwrap()).is_err());
    }

    #[test]
    fn copies_out_of_bounds_and_bad_layouts_are_refused() {
        let mut buf = IoBuf::from_bytes(b"abc").unwrap();
        assert!(buf.copy_from(2, b"xy").is_err());
        assert!(buf.copy_to(usize::MAX, &mut [0]).is_err());
        assert!(buf.fill(0, 4, 0).is_err());
        assert_eq!(buf.to_vec(), b"abc");
        assert!(matches!(IoBuf::heap(1, 3), Err(IoBufError::BadLayout { .. })));
        assert!(IoBuf::heap(0, 4096).unwrap().is_empty());
    }

    #[test]
    fn writes_are_told_to_the_dirty_log() {
        let memory = memory(1 << 20);
        memory.start_dirty_log();
        let mut buf = IoBuf::guest(&memory, GuestAddress(0x2000), 0x3000).unwrap();
        let mut tail = buf.split_off(0x2000);
        tail.copy_from(0, &[1]).unwrap();
        buf.mark_written(1);
        assert_eq!(memory.regions().next().unwrap().dirty.take()[0], 0b1_0100);
    }
}
