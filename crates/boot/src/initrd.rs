//! The initial RAM disk: its place in guest RAM, and the copy into it.

use std::fs::File;
use std::io::{self, Seek};

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

/// Why the initial RAM disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file could not be read.
    #[error("initial RAM disk cannot be read")]
    Read {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("initial RAM disk is empty; leave it out if the kernel needs none")]
    Empty,
    /// There is too little RAM between the kernel and the highest address it may lie at.
    #[error(
        "initial RAM disk of {bytes} bytes does not fit below {limit:#x} and above the kernel, which ends at \
         {kernel_end:#x}: give the machine more memory"
    )]
    NoRoom {
        /// Its length, bytes.
        bytes: u64,
        /// First address it may not use.
        limit: u64,
        /// First address behind the kernel.
        kernel_end: u64,
    },
    /// Copying failed; usually the file became shorter meanwhile.
    #[error("initial RAM disk cannot be copied into guest memory")]
    Copy {
        /// What the copy met.
        #[source]
        source: GuestMemoryError,
    },
}

/// Page, to which the RAM disk is aligned; Linux frees it in pages.
const PAGE: u64 = 4096;

/// Where `bytes` go: as high as possible below `limit`, on a page, not below `kernel_end`.
fn place(bytes: u64, kernel_end: u64, limit: u64) -> Option<u64> {
    let start = limit.checked_sub(bytes)? & !(PAGE - 1);
    (start >= kernel_end).then_some(start)
}

/// Copies `file` below `limit` (at most 4 GiB). Gives its address and length in bytes.
pub(crate) fn load(memory: &GuestMemory, file: &File, kernel_end: u64, limit: u64) -> Result<(u32, u32), InitrdError> {
    let mut reader = file.try_clone().map_err(|source| InitrdError::Read { source })?;
    let bytes = reader
        .seek(io::SeekFrom::End(0))
        .and_then(|bytes| reader.rewind().map(|()| bytes))
        .map_err(|source| InitrdError::Read { source })?;
    if bytes == 0 {
        return Err(InitrdError::Empty);
    }
    let no_room = || InitrdError::NoRoom {
        bytes,
        limit,
        kernel_end,
    };
    let start = place(bytes, kernel_end, limit).ok_or_else(no_room)?;
    let (Ok(start), Ok(size), Ok(count)) = (u32::try_from(start), u32::try_from(bytes), usize::try_from(bytes)) else {
        return Err(no_room());
    };
    memory
        .read_exact_volatile_from(GuestAddress(u64::from(start)), &mut reader, count)
        .map_err(|source| InitrdError::Copy { source })?;
    Ok((start, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_as_high_as_it_may() {
        assert_eq!(place(0x1801, 0x10_0000, 0x800_0000), Some(0x7ff_e000));
        assert_eq!(place(0x1000, 0x7ff_f000, 0x800_0000), Some(0x7ff_f000));
        assert_eq!(place(0x1001, 0x7ff_f000, 0x800_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x800_0000), None);
    }
}
