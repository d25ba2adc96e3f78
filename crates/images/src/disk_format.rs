//! What a disk is: in the store, and in its source.

use disk::probe::Format;
use serde::{Deserialize, Serialize};

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
