//! Pages of guest RAM that are not there yet, and come when they are touched or sent (userfaultfd(2)).
#![expect(
    unsafe_code,
    reason = "ioctls and advice with addresses of the mapping that this module keeps alive"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{Advice, UserfaultfdFlags};

use crate::GuestMemory;
use crate::layout::PAGE_SIZE;

// ioctls, flags and structures of include/uapi/linux/userfaultfd.h.
const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<Range>(0xaa, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<Copy>(0xaa, 0x03);
/// Version of the interface.
const UFFD_API: u64 = 0xaa;
/// Memory that belongs to a file in memory, as ours does.
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
/// Tell of pages that are not there.
const REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of a message, and where the address is in one about a fault.
const MESSAGE: usize = 32;
const MESSAGE_ADDRESS: usize = 16;
/// Messages that are read at once.
const MESSAGES: usize = 64;

const PAGE: usize = 4096;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// Guest RAM in which pages may be missing. Who touches one, guest, device or kernel, waits until it is placed. Pages are named by
/// where they are in the memory file. When this is dropped, pages that are still missing are zero.
#[derive(Debug)]
pub struct Absent {
    fd: OwnedFd,
    memory: GuestMemory,
    /// Host address, bytes, and place in the file of each region.
    regions: Vec<(u64, u64, u64)>,
}

fn open() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: what the descriptor can do to memory is done in this module only, to memory that it holds.
    let fd = unsafe { rustix::mm::userfaultfd(flags) }?;
    let mut api = Api {
        api: UFFD_API,
        features: UFFD_FEATURE_MISSING_SHMEM,
        ioctls: 0,
    };
    // SAFETY: the opcode takes this structure, which the kernel fills.
    unsafe { update::<UFFDIO_API, _>(&fd, &mut api) }?;
    Ok(fd)
}

/// Hands a structure to the kernel, which may change it.
///
/// # Safety
/// `OPCODE` takes a `T`, and what it does with the addresses in it is sound.
unsafe fn update<const OPCODE: Opcode, T>(fd: &OwnedFd, value: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller's word.
    let request = unsafe { Updater::<OPCODE, T>::new(value) };
    // SAFETY: the caller's word.
    unsafe { ioctl(fd, request) }
}

impl Absent {
    /// Whether this kernel lets this process have such memory: it takes `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd`, and
    /// memory in normal pages that is all this process's own.
    pub fn is_possible(memory: &GuestMemory) -> bool {
        !memory.is_hugetlbfs() && memory.whole_file().is_some() && open().is_ok()
    }

    /// From now on pages that are not there are told of. At first that is those that nothing was written to.
    pub fn new(memory: &GuestMemory) -> io::Result<Self> {
        let this = Self {
            fd: open()?,
            memory: memory.clone(),
            regions: memory
                .regions()
                .map(|region| (region.host_address, region.len, region.file_offset))
                .collect(),
        };
        // Else the kernel would fill what is missing between pages that are there, to make huge ones of them.
        this.advise(Advice::LinuxNoHugepage);
        for &(start, len, _) in &this.regions {
            let mut register = Register {
                range: Range { start, len },
                mode: REGISTER_MODE_MISSING,
                ioctls: 0,
            };
            // SAFETY: the opcode takes this structure; the range is a mapping that `this.memory` keeps.
            unsafe { update::<UFFDIO_REGISTER, _>(&this.fd, &mut register) }?;
        }
        Ok(this)
    }

    fn advise(&self, advice: Advice) {
        for &(start, len, _) in &self.regions {
            let (start, len) = (start as *mut _, usize::try_from(len).unwrap_or(0));
            // SAFETY: the range is a mapping that `self.memory` keeps; the advice changes nothing of what is in it.
            if let Err(errno) = unsafe { rustix::mm::madvise(start, len, advice) } {
                tracing::debug!(?advice, %errno, "advice on guest memory not taken");
            }
        }
    }

    /// The page at `offset` of the file and those after it, `bytes` in all, are missing, whatever they held.
    pub fn remove(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let file = self.memory.whole_file().ok_or(io::ErrorKind::Unsupported)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, offset, bytes)?)
    }

    /// Waits until somebody touches missing pages; which, by their place in the file. None after `wait`.
    pub fn touched(&self, wait: Duration) -> io::Result<Vec<u64>> {
        let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut messages = [0; MESSAGE * MESSAGES];
        let count = match rustix::io::read(&self.fd, &mut messages) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let messages = messages.get(..count).unwrap_or_default().as_chunks::<MESSAGE>().0;
        Ok(messages.iter().filter_map(|message| self.page_of(message)).collect())
    }

    fn page_of(&self, message: &[u8; MESSAGE]) -> Option<u64> {
        if message.first() != Some(&UFFD_EVENT_PAGEFAULT) {
            return None;
        }
        let address = message
            .get(MESSAGE_ADDRESS..)?
            .first_chunk()
            .copied()
            .map(u64::from_ne_bytes)?;
        let in_region = |&&(start, len, _): &&(u64, u64, u64)| (start..start + len).contains(&address);
        let &(start, _, offset) = self.regions.iter().find(in_region)?;
        Some((address - start + offset) & !(PAGE_SIZE - 1))
    }

    /// Puts the page at `offset` of the file in its place, at once for whoever looks, and wakes who waits for it. `None` is zeroes.
    /// A page that is there already stays as it is.
    pub fn place(&self, offset: u64, bytes: Option<&[u8; PAGE]>) -> io::Result<()> {
        static ZEROES: [u8; PAGE] = [0; PAGE];
        let in_region = |&&(_, len, start): &&(u64, u64, u64)| (start..start + len).contains(&offset);
        let &(host, _, start) = self.regions.iter().find(in_region).ok_or(io::ErrorKind::NotFound)?;
        let to = host + (offset - start);
        loop {
            let mut copy = Copy {
                to,
                from: bytes.unwrap_or(&ZEROES).as_ptr() as u64,
                len: PAGE_SIZE,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the opcode takes this structure; `from` is a page of initialised bytes that lives over the call, and `to` is
            // a page of the mapping that `self.memory` keeps. Nothing that is there is overwritten.
            match unsafe { update::<UFFDIO_COPY, _>(&self.fd, &mut copy) } {
                // The mapping changes just now.
                Err(Errno::AGAIN) => {}
                Err(Errno::EXIST) => return self.wake(to),
                done => return Ok(done?),
            }
        }
    }

    fn wake(&self, start: u64) -> io::Result<()> {
        let mut range = Range { start, len: PAGE_SIZE };
        // SAFETY: the opcode takes this structure; waking changes no memory.
        Ok(unsafe { update::<UFFDIO_WAKE, _>(&self.fd, &mut range) }?)
    }
}

impl Drop for Absent {
    fn drop(&mut self) {
        self.advise(Advice::LinuxHugepage);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{Bytes, GuestAddress, MemoryConfig};

    #[test]
    fn who_touches_a_missing_page_waits_until_it_is_placed() {
        let memory = GuestMemory::new(MemoryConfig {
            size_bytes: 4 << 20,
            hugepages: None,
            prefault: false,
        })
        .unwrap();
        if !Absent::is_possible(&memory) {
            eprintln!("skipped: no userfaultfd for this process");
            return;
        }
        let at = |page: u64| GuestAddress(page * PAGE_SIZE);
        for page in 0..8 {
            memory.write_obj(page + 1, at(page)).unwrap();
        }
        let absent = Absent::new(&memory).unwrap();
        absent.remove(2 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
        assert_eq!(memory.read_obj::<u64>(at(1)).unwrap(), 2, "others are as they were");
        thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read_obj::<u64>(at(3)).unwrap());
            let mut touched = Vec::new();
            while touched.is_empty() {
                touched = absent.touched(Duration::from_millis(50)).unwrap();
            }
            assert_eq!(touched, [3 * PAGE_SIZE]);
            assert!(!reader.is_finished());
            let mut page = [0; PAGE];
            page[0] = 77;
            absent.place(3 * PAGE_SIZE, Some(&page)).unwrap();
            assert_eq!(reader.join().unwrap(), 77);
        });
        // Once more changes nothing, and nobody has to wait for a page that is placed unasked.
        absent.place(3 * PAGE_SIZE, None).unwrap();
        absent.place(2 * PAGE_SIZE, None).unwrap();
        let values = [2, 3].map(|page| memory.read_obj::<u64>(at(page)).unwrap());
        assert_eq!(values, [0, 77]);
        absent.remove(5 * PAGE_SIZE, PAGE_SIZE).unwrap();
        drop(absent);
        assert_eq!(memory.read_obj::<u64>(at(5)).unwrap(), 0);
        assert!(Absent::new(&memory).unwrap().place(1 << 40, None).is_err());
    }
}
