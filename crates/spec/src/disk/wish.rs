//! A disk as somebody wrote it.

use serde::{Deserialize, Serialize};

use super::{DiskBus, DiskCache, DiskFormat, DiskLimits, DiskSector};

/// A disk: from a file of the host or from a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskWish {
    /// What the disk is called within the machine, unique there: 1–63 of `[a-z0-9-]`, not `root`. Default: `disk1`, `disk2`, … by
    /// its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// File or block device on the host, inside an allowed directory. Either this or `volume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Name or id of a volume. Either this or `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// How the bytes lie in the file at `path`. Default: raw. A volume's is recorded with it and is not written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// How the guest reaches it.
    #[serde(default)]
    pub bus: DiskBus,
    /// What the host does with data on its way to the storage.
    #[serde(default)]
    pub cache: DiskCache,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// The guest sees a CD-ROM drive with this disc in it: read-only, sectors of 2048 bytes, bus scsi only.
    #[serde(default)]
    pub cdrom: bool,
    /// Serial number the guest sees, up to 20 printable ASCII characters. Default: the beginning of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Request queues, 1–16; bus virtio only. Default: one per vCPU, up to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Disks with a boot order come before those without, the lowest first, and so are named first by the guest; 1 or more. The
    /// root disk of an image is before all. Without an image and a command line, the first of them is the kernel's `root=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<u16>,
    /// Logical sector the guest sees, 512 or 4096 bytes. Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, example = 512))]
    pub sector_size: Option<DiskSector>,
    /// Rates that are kept to.
    #[serde(default, skip_serializing_if = "DiskLimits::is_none")]
    pub limits: DiskLimits,
}

impl DiskWish {
    /// A disk from the raw file or block device at `path`, everything else by default.
    pub fn from_path(path: impl Into<String>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::default()
        }
    }

    /// A disk from the volume with this name or id, everything else by default.
    pub fn from_volume(volume: impl Into<String>) -> Self {
        Self {
            volume: Some(volume.into()),
            ..Self::default()
        }
    }
}
