//! What an image file is, judged by what is in it and never by what it is called.
//!
//! For **import** only. The bytes of a raw disk are its guest's: it can make them look like any format, with references to files of
//! the host in it. So the format of an image is found out once, when the image comes in, and recorded; whoever opens it later
//! goes by the record.
//!
//! What is believed is bounded: the first [`START_BYTES`] and the last [`END_BYTES`] are looked at, no place the file points to
//! is followed, and a magic number counts only where what must follow it does.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use guestmem::IoBuf;

use crate::{DiskError, DiskErrorKind, DiskIo, DiskOp};

mod judge;

/// How much of the beginning is looked at, bytes: up to and with the first volume descriptor of a CD-ROM, the farthest of all
/// marks (sector 16, ECMA-119 §6.7.1).
pub const START_BYTES: u64 = 36 << 10;

/// How much of the end is looked at, bytes: the footer of a VHD.
pub const END_BYTES: u64 = 512;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes, one after the other; or nothing known.
    Raw,
    /// The same, and they are a CD-ROM's (ECMA-119). May be a disk's as well: installers are often both.
    Iso9660,
    /// An encrypted volume (LUKS 1 or 2): its bytes are a disk's only for whoever has the key.
    Luks,
    /// QEMU copy-on-write, the first version.
    Qcow,
    /// QEMU copy-on-write, versions 2 and 3.
    Qcow2,
    /// QEMU enhanced disk.
    Qed,
    /// VMware: a sparse extent, or a description that names others.
    Vmdk,
    /// Virtual PC: dynamic, differencing, or fixed (a raw disk with a footer).
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// Parallels.
    Parallels,
    /// Something that has to be unpacked first.
    Packed(Packing),
}

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// The LZ4 frame format.
    Lz4,
    /// ZIP.
    Zip,
    /// A tape archive, as an OVA is.
    Tar,
}

impl Format {
    /// Whether the bytes of the file are the bytes of the disk.
    pub const fn is_plain(self) -> bool {
        matches!(self, Self::Raw | Self::Iso9660)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Iso9660 => "iso9660",
            Self::Luks => "luks",
            Self::Qcow => "qcow",
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Packed(Packing::Gzip) => "gzip",
            Self::Packed(Packing::Xz) => "xz",
            Self::Packed(Packing::Zstd) => "zstd",
            Self::Packed(Packing::Bzip2) => "bzip2",
            Self::Packed(Packing::Lz4) => "lz4",
            Self::Packed(Packing::Zip) => "zip",
            Self::Packed(Packing::Tar) => "tar",
        })
    }
}

/// The parts of an image that are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    start: Vec<u8>,
    end: Vec<u8>,
    size_bytes: u64,
}

impl Sample {
    /// Of bytes that are at hand: all there are of a small image, or its first [`START_BYTES`] and last [`END_BYTES`].
    pub fn new(start: &[u8], end: &[u8], size_bytes: u64) -> Self {
        let (head, tail) = lengths(size_bytes);
        Self {
            start: start.get(..head).unwrap_or(start).to_vec(),
            end: end.get(end.len().saturating_sub(tail)..).unwrap_or(end).to_vec(),
            size_bytes,
        }
    }

    /// Of an open file or block device. Blocks.
    ///
    /// # Errors
    /// It can not be read.
    pub fn of_file(file: &File) -> io::Result<Self> {
        // The position of the end is the size of files and block devices alike.
        let size_bytes = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
        let (head, tail) = lengths(size_bytes);
        let (mut start, mut end) = (vec![0; head], vec![0; tail]);
        file.read_exact_at(&mut start, 0)?;
        file.read_exact_at(&mut end, size_bytes.saturating_sub(tail as u64))?;
        Ok(Self { start, end, size_bytes })
    }

    /// Of a disk.
    ///
    /// # Errors
    /// It can not be read.
    pub async fn of_disk(io: &dyn DiskIo) -> Result<Self, DiskError> {
        let size_bytes = io.geometry().size_bytes;
        let sector = u64::from(io.geometry().logical_sector_bytes);
        let head = START_BYTES.min(size_bytes);
        let tail = END_BYTES.next_multiple_of(sector).min(size_bytes);
        let start = read(io, 0, head).await?;
        let end = read(io, size_bytes - tail, tail).await?;
        Ok(Self::new(&start, &end, size_bytes))
    }

    /// What the image is.
    pub fn format(&self) -> Format {
        judge::format(&self.start, &self.end, self.size_bytes)
    }
}

fn lengths(size_bytes: u64) -> (usize, usize) {
    let least = |len: u64| usize::try_from(len.min(size_bytes)).unwrap_or_default();
    (least(START_BYTES), least(END_BYTES))
}

async fn read(io: &dyn DiskIo, offset: u64, len: u64) -> Result<Vec<u8>, DiskError> {
    let no_memory = |error| DiskError::new(DiskOp::Read, DiskErrorKind::Io).because(error);
    let len = usize::try_from(len).unwrap_or_default();
    let (result, bufs) = io.read(offset, vec![IoBuf::heap(len, 4096).map_err(no_memory)?]).await;
    result?;
    Ok(bufs.iter().flat_map(IoBuf::to_vec).collect())
}
