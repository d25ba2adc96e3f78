//! What a disk file is, judged by its first bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use disk::probe::{Format, Sample};
use serde::{Deserialize, Serialize};

use crate::qcow2;

/// What a sealed disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk, one after the other.
    #[default]
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Name of such a disk inside an image's directory.
    pub(crate) const fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "disk.raw",
            Self::Qcow2 => "disk.qcow2",
        }
    }
}

/// What a disk was in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceFormat {
    /// The bytes of the disk, one after the other.
    Raw,
    /// The same, and a CD-ROM's.
    Iso,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// VMware.
    Vmdk,
    /// Virtual PC.
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
}

impl SourceFormat {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Iso => "iso",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }

    /// Of what an inspection found; none for what no disk is made from.
    pub(crate) const fn of(format: Format) -> Option<Self> {
        Some(match format {
            Format::Raw => Self::Raw,
            Format::Iso9660 => Self::Iso,
            Format::Qcow2 => Self::Qcow2,
            Format::Vmdk => Self::Vmdk,
            Format::Vhd => Self::Vhd,
            Format::Vhdx => Self::Vhdx,
            Format::Vdi => Self::Vdi,
            _ => return None,
        })
    }
}

/// Why a disk file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskFormatError {
    /// Its data is partly in another file.
    #[error("the qcow2 disk refers to a backing file; flatten it first: qemu-img convert -O qcow2 OLD NEW")]
    BackingFile,
    /// Its data is in another file.
    #[error("the qcow2 disk keeps its data in an external file; flatten it first: qemu-img convert -O qcow2 OLD NEW")]
    ExternalData,
    /// It is encrypted.
    #[error("the qcow2 disk is encrypted; decrypt it with qemu-img convert before it is packed")]
    Encrypted,
    /// It needs something this program does not know.
    #[error(
        "the qcow2 disk uses {0}, which is not supported; convert it with qemu-img convert -O qcow2 -o compat=1.1 OLD NEW"
    )]
    Qcow2Feature(String),
    /// It is of a known format that is not supported.
    #[error("the disk is in {0} format; convert it: qemu-img convert -O qcow2 OLD NEW")]
    Unsupported(Format),
    /// Its header makes no sense.
    #[error("the qcow2 disk is damaged: {0}")]
    Damaged(String),
    /// It holds nothing.
    #[error("the disk is empty")]
    Empty,
    /// It is larger than the configuration allows.
    #[error("the disk is {size_bytes} bytes as its guest sees it, more than max_disk_bytes = {limit_bytes} allows")]
    TooLarge {
        /// Virtual size, bytes.
        size_bytes: u64,
        /// The limit, bytes.
        limit_bytes: u64,
    },
}

/// What `file` holds, and the size a guest would see, bytes.
pub(crate) fn probe(file: &File, limit_bytes: u64) -> io::Result<Result<(DiskFormat, u64), DiskFormatError>> {
    let length = file.metadata()?.len();
    let format = Sample::of_file(file)?.format();
    let mut start = [0; qcow2::HEADER_BYTES];
    let available = usize::try_from(length).unwrap_or(usize::MAX).min(start.len());
    let start = start.get_mut(..available).unwrap_or_default();
    file.read_exact_at(start, 0)?;
    Ok(judge(format, start, length, limit_bytes))
}

fn judge(format: Format, start: &[u8], length: u64, limit_bytes: u64) -> Result<(DiskFormat, u64), DiskFormatError> {
    let (format, size_bytes) = match format {
        Format::Qcow2 => (DiskFormat::Qcow2, qcow2::virtual_size(start)?),
        plain if plain.is_plain() => (DiskFormat::Raw, length),
        other => return Err(DiskFormatError::Unsupported(other)),
    };
    if size_bytes == 0 {
        return Err(DiskFormatError::Empty);
    }
    if size_bytes > limit_bytes {
        return Err(DiskFormatError::TooLarge {
            size_bytes,
            limit_bytes,
        });
    }
    Ok((format, size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(start: &[u8], length: u64, limit_bytes: u64) -> Result<(DiskFormat, u64), DiskFormatError> {
        judge(Sample::new(start, &[], length).format(), start, length, limit_bytes)
    }

    #[test]
    fn goes_by_content() {
        let qcow2 = qcow2::tests::header(1 << 20);
        assert!(matches!(
            judged(&qcow2, 9999, 1 << 20),
            Ok((DiskFormat::Qcow2, 1_048_576))
        ));
        assert!(matches!(judged(b"\xeb\x63\x90", 3, 10), Ok((DiskFormat::Raw, 3))));
        assert!(matches!(
            judged(&qcow2, 9999, 1 << 19),
            Err(DiskFormatError::TooLarge { .. })
        ));
        assert!(matches!(judged(b"", 0, 10), Err(DiskFormatError::Empty)));
        assert!(matches!(
            judged(b"KDMV\x01\0\0\0", 512, 1024),
            Err(DiskFormatError::Unsupported(Format::Vmdk))
        ));
        assert!(matches!(
            judged(b"LUKS\xba\xbe\0\x02", 512, 1024),
            Err(DiskFormatError::Unsupported(Format::Luks))
        ));
        assert!(matches!(
            judged(b"\x1f\x8b\x08\0", 4, 10),
            Err(DiskFormatError::Unsupported(_))
        ));
    }
}
