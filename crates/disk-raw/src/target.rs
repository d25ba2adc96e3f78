//! What is behind a descriptor: kind, size, sectors, what direct I/O asks for, what discards free.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, SeekFrom, StatxFlags};
use rustix::io::Errno;

/// Unit in which file systems hand out space, bytes: the block size of all that matter.
const FILE_BLOCK_BYTES: u32 = 4096;

/// Address alignment that every device takes, bytes: a page. Used where the kernel does not tell (before Linux 6.1).
const SAFE_ALIGNMENT_BYTES: usize = 4096;

/// Files and block devices are all that is a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Block,
}

/// What direct I/O asks of a request, bytes, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectRules {
    /// Of buffer addresses.
    pub(crate) memory: usize,
    /// Of offsets and lengths.
    pub(crate) offset: u32,
}

/// A descriptor, looked at.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) size_bytes: u64,
    /// What the store itself writes at once.
    pub(crate) physical_sector_bytes: u32,
    /// `None` if it takes none.
    pub(crate) discard_granularity_bytes: Option<u32>,
}

impl Target {
    /// `Ok(Err(what))` for what is no disk.
    pub(crate) fn inspect(fd: BorrowedFd<'_>) -> io::Result<Result<Self, FileType>> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Self {
                kind: Kind::File,
                size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
                physical_sector_bytes: FILE_BLOCK_BYTES,
                discard_granularity_bytes: Some(FILE_BLOCK_BYTES),
            }),
            FileType::BlockDevice => {
                let physical = rustix::fs::ioctl_blkpbszget(fd)?.max(rustix::fs::ioctl_blksszget(fd)?);
                Ok(Self {
                    kind: Kind::Block,
                    // For a block device the position of the end is its size.
                    size_bytes: rustix::fs::seek(fd, SeekFrom::End(0))?,
                    physical_sector_bytes: physical,
                    discard_granularity_bytes: block_discard(stat.st_rdev, physical),
                })
            }
            other => Err(other),
        })
    }
}

/// What sysfs says about discards; where it says nothing, the device is asked when the first discard comes.
fn block_discard(device: u64, physical_sector_bytes: u32) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's queue is its parent's.
    let says = ["queue", "../queue"].iter().find_map(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/discard_granularity");
        fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
    });
    match says {
        Some(0) => None,
        Some(granularity) if granularity.is_power_of_two() => Some(granularity.max(physical_sector_bytes)),
        _ => Some(physical_sector_bytes),
    }
}

impl DirectRules {
    /// What this file asks for; it has `O_DIRECT` set. `EOPNOTSUPP` if it does none.
    pub(crate) fn discover(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let statx = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return Self::by_trial(fd);
        }
        match (statx.stx_dio_mem_align, statx.stx_dio_offset_align) {
            (0, _) | (_, 0) => Err(Errno::OPNOTSUPP.into()),
            (memory, offset) => Ok(Self {
                memory: memory as usize,
                offset,
            }),
        }
    }

    fn by_trial(fd: BorrowedFd<'_>) -> io::Result<Self> {
        for offset in [512, 4096] {
            let mut pages = vec![0; 2 * SAFE_ALIGNMENT_BYTES];
            let start = pages.as_ptr().align_offset(SAFE_ALIGNMENT_BYTES);
            let Some(buf) = pages.get_mut(start..start + offset as usize) else {
                continue;
            };
            match rustix::io::pread(fd, buf, 0) {
                Ok(_) => {
                    return Ok(Self {
                        memory: SAFE_ALIGNMENT_BYTES,
                        offset,
                    });
                }
                Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::OPNOTSUPP.into())
    }
}

/// A word for what is no disk.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        _ => "special file",
    }
}
