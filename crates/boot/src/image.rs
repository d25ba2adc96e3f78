//! Reading of images that may be anything, at checked offsets.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of an image, wherever they are.
pub(crate) trait Image {
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`; `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Image for File {
    fn len(&self) -> io::Result<u64> {
        // Not the metadata's length: that of a block device is zero.
        rustix::fs::seek(self, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Image for &[u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = from.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.get(from..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// `N` bytes at `at` of a header that was read whole; zeroes when it is shorter.
pub(crate) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

/// Little-endian 16 bits of a header at `at`.
pub(crate) fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(header, at))
}

/// Little-endian 32 bits of a header at `at`.
pub(crate) fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(header, at))
}

/// Little-endian 64 bits of a header at `at`.
pub(crate) fn u64_at(header: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(header, at))
}
