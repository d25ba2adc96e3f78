//! The owner of a machine's RAM.
#![expect(
    unsafe_code,
    reason = "advice on the mapping this module made; nothing else has it yet"
)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::MemfdFlags;
use rustix::mm::Advice;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};
use vm_memory::{GuestRegionMmap, MemoryRegionAddress};

use crate::dirty::DirtyLog;
use crate::layout::{PAGE_SIZE, ram_ranges};

/// What [`GuestMemory`] dereferences to: `vm-memory`'s collection of regions with our [`DirtyLog`].
pub type GuestRam = GuestMemoryMmap<DirtyLog>;

/// Work unit of one prefault thread, bytes: large enough to hide the hand-out, small enough to even out the threads.
const PREFAULT_CHUNK: u64 = 1 << 28;

/// More threads than this do not fault pages in faster: the kernel's page allocator is the limit then (rule of thumb).
const PREFAULT_THREADS: usize = 8;

/// Size of the pages behind guest RAM, when not the kernel's normal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugepageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl HugepageSize {
    /// Bytes of one page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    const fn memfd_flags(self) -> MemfdFlags {
        MemfdFlags::HUGETLB.union(match self {
            Self::Size2M => MemfdFlags::HUGE_2MB,
            Self::Size1G => MemfdFlags::HUGE_1GB,
        })
    }
}

impl std::fmt::Display for HugepageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Size2M => "2 MiB",
            Self::Size1G => "1 GiB",
        })
    }
}

/// What to make RAM of.
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// All RAM, bytes; a multiple of 4 KiB, and of the hugepage size when there is one.
    pub size_bytes: u64,
    /// Explicit hugepages from the host's pool; `None` for normal pages (transparent hugepages are asked for then).
    pub hugepages: Option<HugepageSize>,
    /// Give every page to the guest now, so that it never waits for the host's page allocator later.
    pub prefault: bool,
}

/// Why RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The size is zero or not a multiple of the page size.
    #[error("guest memory of {size_bytes} bytes is not a positive multiple of {unit} bytes, the size of its pages")]
    BadSize {
        /// What was asked for, bytes.
        size_bytes: u64,
        /// What it must be a multiple of, bytes.
        unit: u64,
    },
    /// The kernel has no pages of that size.
    #[error("this host has no {size} huge pages; use normal pages, or a CPU and kernel that have them")]
    HugepagesUnsupported {
        /// The size asked for.
        size: HugepageSize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pool has too few free pages.
    #[error(
        "the host's pool of {size} huge pages is short: {needed} free ones are needed; raise \
         /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages or use normal pages",
        kib = size.bytes() / 1024
    )]
    HugepagesShort {
        /// The size asked for.
        size: HugepageSize,
        /// How many pages the guest's RAM takes.
        needed: u64,
    },
    /// The memory file could not be made.
    #[error("cannot create a memory file of {size_bytes} bytes for guest memory")]
    File {
        /// Its size, bytes.
        size_bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file that RAM is to be mapped from is no match.
    #[error("a file of {len} bytes can not be the memory of a guest that has {size_bytes}")]
    FileLength {
        /// Its length, bytes.
        len: u64,
        /// What RAM there is, bytes.
        size_bytes: u64,
    },
    /// The memory file could not be mapped.
    #[error("cannot map {len} bytes of guest memory at guest address {gpa:#x}")]
    Map {
        /// Start of the region in the guest.
        gpa: u64,
        /// Its length, bytes.
        len: u64,
        /// What the kernel or `vm-memory` said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pages could not be given to the guest in advance.
    #[error(
        "cannot prefault {size_bytes} bytes of guest memory; the host or this machine's cgroup has too little free"
    )]
    Prefault {
        /// All RAM, bytes.
        size_bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One contiguous piece of RAM, as a KVM memory slot or a vhost backend needs it.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// First guest physical address.
    pub gpa: GuestAddress,
    /// Length, bytes.
    pub len: u64,
    /// Where this process has it mapped. Valid while the [`GuestMemory`] (any clone) lives.
    pub host_address: u64,
    /// The memory file.
    pub fd: BorrowedFd<'a>,
    /// Where the region begins in the file, bytes.
    pub file_offset: u64,
    /// Pages written by device code.
    pub dirty: &'a DirtyLog,
}

#[derive(Debug)]
struct Ram {
    regions: GuestRam,
    file: Arc<File>,
    size_bytes: u64,
    /// The file is somebody else's, and what is written here is not in it.
    private: bool,
}

/// A machine's RAM. Clones share it; the last clone (or [`crate::IoBuf`]) unmaps it.
///
/// Use it where `virtio-queue` wants `M: Deref<Target: GuestMemory> + Clone`: pass a clone for a chain that outlives the
/// call, or `&*memory` for one that does not.
#[derive(Debug, Clone)]
pub struct GuestMemory(Arc<Ram>);

impl GuestMemory {
    /// Makes zeroed RAM, laid out by [`crate::layout`], in one memfd that no other program inherits.
    pub fn new(config: MemoryConfig) -> Result<Self, CreateError> {
        let MemoryConfig {
            size_bytes, hugepages, ..
        } = config;
        let unit = hugepages.map_or(PAGE_SIZE, HugepageSize::bytes);
        if size_bytes == 0 || !size_bytes.is_multiple_of(unit) {
            return Err(CreateError::BadSize { size_bytes, unit });
        }
        let file = Arc::new(memory_file(size_bytes, hugepages)?);
        let regions = map_regions(&file, size_bytes, |gpa, len, place| map_region(gpa, len, place, config))?;
        if config.prefault {
            prefault(&regions, unit).map_err(|source| CreateError::Prefault { size_bytes, source })?;
        }
        Ok(Self(Arc::new(Ram {
            regions,
            file,
            size_bytes,
            private: false,
        })))
    }

    /// RAM with the contents of `file`, which is as long, and lies in it as in the memory file of [`GuestMemory::new`]. Nothing is
    /// read before it is needed, and nothing is written back: a page that is written becomes this RAM's own. Several may be made
    /// of one file. It must neither change nor be cut while any of them lives.
    pub fn over(file: File, size_bytes: u64) -> Result<Self, CreateError> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(PAGE_SIZE) {
            let unit = PAGE_SIZE;
            return Err(CreateError::BadSize { size_bytes, unit });
        }
        let unreadable = |source| CreateError::File { size_bytes, source };
        let len = file.metadata().map_err(unreadable)?.len();
        if len != size_bytes {
            return Err(CreateError::FileLength { len, size_bytes });
        }
        let file = Arc::new(file);
        let regions = map_regions(&file, size_bytes, map_private)?;
        Ok(Self(Arc::new(Ram {
            regions,
            file,
            size_bytes,
            private: true,
        })))
    }

    /// The file in which all of RAM is, so that where it has holes there are zeroes; `None` where there is no such file.
    pub fn whole_file(&self) -> Option<BorrowedFd<'_>> {
        (!self.0.private).then(|| self.0.file.as_fd())
    }

    /// Whether it is in explicit huge pages.
    pub fn is_hugetlbfs(&self) -> bool {
        self.0.regions.iter().any(|region| region.is_hugetlbfs() == Some(true))
    }

    /// All RAM, bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// The pieces of RAM in ascending order. Their positions here number the KVM slots and never change.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = Region<'_>> {
        let regions: Vec<_> = self.0.regions.iter().map(|region| self.describe(region)).collect();
        regions.into_iter()
    }

    fn describe<'a>(&'a self, region: &'a GuestRegionMmap<DirtyLog>) -> Region<'a> {
        Region {
            gpa: region.start_addr(),
            len: region.len(),
            host_address: region.as_ptr() as u64,
            fd: self.0.file.as_fd(),
            file_offset: region.file_offset().map_or(0, FileOffset::start),
            dirty: MmapRegion::bitmap(region),
        }
    }

    /// The `vm-memory` collection itself.
    pub fn inner(&self) -> &GuestRam {
        &self.0.regions
    }

    /// Begins to record what device code writes, in every region.
    pub fn start_dirty_log(&self) {
        self.regions().for_each(|region| region.dirty.start());
    }

    /// Ends what [`GuestMemory::start_dirty_log`] began.
    pub fn stop_dirty_log(&self) {
        self.regions().for_each(|region| region.dirty.stop());
    }

    /// True when all of `gpa..gpa + len` is RAM.
    pub fn contains(&self, gpa: GuestAddress, len: usize) -> bool {
        GuestMemoryBackend::check_range(&self.0.regions, gpa, len)
    }
}

impl Deref for GuestMemory {
    type Target = GuestRam;

    fn deref(&self) -> &GuestRam {
        &self.0.regions
    }
}

impl AsRef<GuestRam> for GuestMemory {
    fn as_ref(&self) -> &GuestRam {
        &self.0.regions
    }
}

fn memory_file(size_bytes: u64, hugepages: Option<HugepageSize>) -> Result<File, CreateError> {
    let flags = MemfdFlags::CLOEXEC | hugepages.map_or(MemfdFlags::empty(), HugepageSize::memfd_flags);
    let fd = rustix::fs::memfd_create("karat-guest-ram", flags).map_err(|errno| match hugepages {
        Some(size) => CreateError::HugepagesUnsupported {
            size,
            source: errno.into(),
        },
        None => CreateError::File {
            size_bytes,
            source: errno.into(),
        },
    })?;
    rustix::fs::ftruncate(&fd, size_bytes).map_err(|errno| CreateError::File {
        size_bytes,
        source: errno.into(),
    })?;
    Ok(File::from(fd))
}

fn map_regions(
    file: &Arc<File>,
    size_bytes: u64,
    map: impl Fn(u64, u64, FileOffset) -> Result<GuestRegionMmap<DirtyLog>, CreateError>,
) -> Result<GuestRam, CreateError> {
    let mut regions = Vec::new();
    let mut file_offset = 0;
    for (gpa, len) in ram_ranges(size_bytes) {
        let place = FileOffset::from_arc(Arc::clone(file), file_offset);
        regions.push(map(gpa, len, place)?);
        file_offset += len;
    }
    GuestRam::from_regions(regions).map_err(|source| CreateError::Map {
        gpa: 0,
        len: size_bytes,
        source: source.into(),
    })
}

fn map_private(gpa: u64, len: u64, place: FileOffset) -> Result<GuestRegionMmap<DirtyLog>, CreateError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CreateError::Map { gpa, len, source };
    let size = usize::try_from(len).map_err(|error| failed(error.into()))?;
    let mapping = MmapRegion::<DirtyLog>::build(
        Some(place),
        size,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE,
    );
    let mapping = mapping.map_err(|error| failed(error.into()))?;
    advise_kernel(&mapping, false);
    GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or_else(|| failed("the region wraps around".into()))
}

fn map_region(
    gpa: u64,
    len: u64,
    place: FileOffset,
    config: MemoryConfig,
) -> Result<GuestRegionMmap<DirtyLog>, CreateError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CreateError::Map { gpa, len, source };
    let size = usize::try_from(len).map_err(|error| failed(error.into()))?;
    // Without MAP_NORESERVE the kernel sets the hugepages aside now: better refused here than SIGBUS while the guest runs.
    let reserve = if config.hugepages.is_some() {
        0
    } else {
        libc::MAP_NORESERVE
    };
    let mapping = MmapRegion::<DirtyLog>::build(
        Some(place),
        size,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | reserve,
    );
    let mut mapping = match (mapping, config.hugepages) {
        (Ok(mapping), _) => mapping,
        (Err(MmapRegionError::Mmap(error)), Some(size)) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let needed = config.size_bytes / size.bytes();
            return Err(CreateError::HugepagesShort { size, needed });
        }
        (Err(error), _) => return Err(failed(error.into())),
    };
    mapping.set_hugetlbfs(config.hugepages.is_some());
    advise_kernel(&mapping, config.hugepages.is_none());
    GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or_else(|| failed("the region wraps around".into()))
}

/// Keeps guest RAM out of core dumps and asks for transparent hugepages; both are wishes, failing costs nothing.
fn advise_kernel(mapping: &MmapRegion<DirtyLog>, transparent_hugepages: bool) {
    let wishes = [
        (Advice::LinuxDontDump, true),
        (Advice::LinuxHugepage, transparent_hugepages),
    ];
    for (advice, wanted) in wishes {
        if !wanted {
            continue;
        }
        // SAFETY: the range is exactly the mapping we just made and still own; neither advice changes what is in it.
        let advised = unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
        if let Err(errno) = advised {
            tracing::debug!(?advice, %errno, "advice on guest memory not taken");
        }
    }
}

/// Faults every page in, for writing, by a few threads.
fn prefault(regions: &GuestRam, page_bytes: u64) -> io::Result<()> {
    let chunks: Vec<_> = regions
        .iter()
        .flat_map(|region| {
            let step = PREFAULT_CHUNK.max(page_bytes);
            let starts = (0..region.len()).step_by(usize::try_from(step).unwrap_or(usize::MAX));
            starts.map(move |start| (region, start, step.min(region.len() - start)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        while let Some(&(region, start, len)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            prefault_chunk(region, start, len, page_bytes)?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(PREFAULT_THREADS).min(chunks.len());
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().fold(mine, |so_far, other| {
            let died = || Err(io::Error::other("a prefault thread died"));
            so_far.and(other.join().unwrap_or_else(|_| died()))
        })
    })
}

fn prefault_chunk(region: &GuestRegionMmap<DirtyLog>, start: u64, len: u64, page_bytes: u64) -> io::Result<()> {
    let in_region = |offset| MemoryRegionAddress(offset);
    let host = region.get_host_address(in_region(start)).map_err(io::Error::other)?;
    let bytes = usize::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the range lies inside the region's mapping, which `region` keeps alive; populating pages for writing changes no
    // byte.
    match unsafe { rustix::mm::madvise(host.cast(), bytes, Advice::LinuxPopulateWrite) } {
        // Before Linux 5.14: write a zero into every page. The memory is new, so it holds zeroes anyway.
        Err(rustix::io::Errno::INVAL) => (start..start + len)
            .step_by(usize::try_from(page_bytes).unwrap_or(usize::MAX))
            .try_for_each(|offset| region.store(0u8, in_region(offset), Ordering::Relaxed))
            .map_err(io::Error::other),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn memory(size_bytes: u64, prefault: bool) -> GuestMemory {
        GuestMemory::new(MemoryConfig {
            size_bytes,
            hugepages: None,
            prefault,
        })
        .unwrap()
    }

    #[test]
    fn six_gib_lie_in_two_regions_of_one_file() {
        let memory = memory(6 * GIB, false);
        let shape: Vec<_> = memory.regions().map(|r| (r.gpa.0, r.len, r.file_offset)).collect();
        assert_eq!(shape, vec![(0, 3 * GIB, 0), (4 * GIB, 3 * GIB, 3 * GIB)]);
        memory.write_obj(0x1122_3344_u32, GuestAddress(4 * GIB)).unwrap();
        let mut word = [0; 4];
        rustix::io::pread(memory.regions().nth(1).unwrap().fd, &mut word, 3 * GIB).unwrap();
        assert_eq!(u32::from_le_bytes(word), 0x1122_3344);
        assert!(memory.write_obj(0u8, GuestAddress(3 * GIB)).is_err());
        assert!(memory.contains(GuestAddress(0), 4096) && !memory.contains(GuestAddress(3 * GIB - 1), 2));
        assert_eq!(memory.ram_bytes(), 6 * GIB);
    }

    #[test]
    fn prefault_takes_the_pages_at_once() {
        let blocks = |memory: &GuestMemory| {
            rustix::fs::fstat(memory.regions().next().unwrap().fd)
                .unwrap()
                .st_blocks
                .cast_unsigned()
        };
        assert_eq!(blocks(&memory(4 * MIB, false)), 0);
        assert_eq!(blocks(&memory(4 * MIB, true)) * 512, 4 * MIB);
    }

    #[test]
    fn device_writes_reach_the_dirty_log_of_their_region() {
        let memory = memory(MIB, false);
        memory.write_slice(&[1; 10], GuestAddress(0)).unwrap();
        memory.start_dirty_log();
        memory.write_slice(&[1; 4097], GuestAddress(0x3000)).unwrap();
        let region = memory.regions().next().unwrap();
        assert_eq!(region.dirty.take()[0], 0b11000);
        memory.stop_dirty_log();
        memory.write_slice(&[1; 10], GuestAddress(0)).unwrap();
        assert_eq!(region.dirty.take()[0], 0);
    }

    #[test]
    fn ram_over_a_file_reads_it_and_keeps_what_is_written_to_itself() {
        let original = memory(MIB, false);
        original.write_obj(7_u64, GuestAddress(0x3000)).unwrap();
        let file = || File::from(original.whole_file().unwrap().try_clone_to_owned().unwrap());
        let (one, other) = (
            GuestMemory::over(file(), MIB).unwrap(),
            GuestMemory::over(file(), MIB).unwrap(),
        );
        assert_eq!(one.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 7);
        one.write_obj(8_u64, GuestAddress(0x3000)).unwrap();
        for untouched in [&other, &original] {
            assert_eq!(untouched.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 7);
        }
        assert!(one.whole_file().is_none(), "its file does not have all of it");
        for wrong in [MIB / 2, 2 * MIB] {
            let error = GuestMemory::over(file(), wrong).unwrap_err();
            assert!(matches!(error, CreateError::FileLength { .. }), "{error}");
        }
    }

    #[test]
    fn sizes_that_fit_no_pages_are_refused() {
        let make = |size_bytes, hugepages| {
            GuestMemory::new(MemoryConfig {
                size_bytes,
                hugepages,
                prefault: false,
            })
        };
        assert!(matches!(make(0, None), Err(CreateError::BadSize { .. })));
        assert!(matches!(make(4097, None), Err(CreateError::BadSize { unit: 4096, .. })));
        let odd = make(3 * MIB, Some(HugepageSize::Size2M)).unwrap_err();
        assert!(matches!(odd, CreateError::BadSize { .. }), "{odd}");
    }

    #[test]
    fn a_short_hugepage_pool_says_what_is_needed() {
        // More than any pool holds: 64 TiB.
        let error = GuestMemory::new(MemoryConfig {
            size_bytes: 1 << 46,
            hugepages: Some(HugepageSize::Size2M),
            prefault: false,
        })
        .unwrap_err();
        match error {
            CreateError::HugepagesShort { needed, .. } => assert_eq!(needed, 1 << 25),
            CreateError::HugepagesUnsupported { .. } => eprintln!("skipped: this kernel has no 2 MiB huge pages"),
            other => panic!("{other}"),
        }
    }
}
