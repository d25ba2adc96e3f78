//! Disks: what is common to those that are asked for ([`DiskWish`]), planned ([`DiskPlan`]) and built ([`DiskSpec`]).

mod device;
mod limits;
mod plan;
mod wish;

use serde::{Deserialize, Serialize};

pub use device::{DISK_SERIAL_MAX, DiskSpec};
pub(crate) use device::{DISKS_MAX, check_all};
pub use limits::DiskLimits;
pub use plan::{DiskPlan, DiskSource};
pub(crate) use plan::{plan, root_disk};
pub use wish::DiskWish;

/// Name of the root disk, which a machine with an image has.
pub const ROOT_DISK: &str = "root";

/// How the bytes of a disk lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl DiskFormat {
    /// What names of its files end with.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// How the guest reaches a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskBus {
    /// A virtio-blk device of its own: the fastest way. Linux names it `/dev/vda` and on.
    #[default]
    Virtio,
    /// A logical unit of the machine's one virtio-scsi controller. Linux names it `/dev/sda` and on, a CD-ROM `/dev/sr0`.
    Scsi,
}

/// What the host does with data of a disk on its way to the storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskCache {
    /// Through the host's page cache; durable when the guest flushes.
    #[default]
    Cached,
    /// Past the page cache (`O_DIRECT`); durable when the guest flushes.
    Direct,
    /// Through the page cache, and each write is durable when the guest learns that it is done.
    Writethrough,
}

/// Logical sector of a disk: what the guest may address, and what is written as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum DiskSector {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

/// Why a number is no size of a sector.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} is no sector size: take 512 or 4096")]
pub struct DiskSectorError(u32);

impl DiskSector {
    /// Its length.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

impl TryFrom<u32> for DiskSector {
    type Error = DiskSectorError;

    fn try_from(bytes: u32) -> Result<Self, DiskSectorError> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            other => Err(DiskSectorError(other)),
        }
    }
}

impl From<DiskSector> for u32 {
    fn from(sector: DiskSector) -> Self {
        sector.bytes()
    }
}
