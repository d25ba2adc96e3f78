//! A machine as somebody wrote it. Nothing here is checked beyond its shape; [`crate::VmPlan`] is what passed.

use serde::{Deserialize, Serialize};

use crate::disk::{DiskBus, DiskWish};
use crate::quantity::ByteSize;

/// What is asked for in a machine. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmSpec {
    /// 1–63 of `[a-z0-9-]`, unique on the host.
    pub name: String,
    /// Golden image the root disk is cloned from: its digest, or a reference that was pulled. Without one, the machine has
    /// no root disk and needs `boot.kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Number of vCPUs, 1–64.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// How the vCPUs are laid out; the product must be `cpus`. Default: one socket, one thread per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Guest memory.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// What guest memory is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_backing: Option<MemoryBacking>,
    /// Size the root disk is grown to; default and minimum: the image's virtual size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<ByteSize>,
    /// How the guest reaches the root disk. Default: as the image's properties ask (`hw_disk_bus`), else `virtio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<DiskBus>,
    /// Kernel, initrd and command line, where they should not come from the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootWish>,
    /// Disks after the root disk, in the order the guest sees them where no boot order says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskWish>,
    /// Network interfaces, in the order the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkWish>,
}

/// One vCPU.
const fn default_cpus() -> u32 {
    1
}

/// 512 MiB: what a stock server distribution boots in with room to spare.
const fn default_memory() -> ByteSize {
    ByteSize::from_mib(512)
}

/// Sockets × cores × threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores in each package.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryBacking {
    /// Back it with huge pages from the host's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePagesWish>,
    /// Populate all of it before the first instruction.
    #[serde(default)]
    pub prefault: bool,
}

/// Size of a huge page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HugePagesWish {
    /// 2 MiB.
    #[serde(rename = "2Mi")]
    Mib2,
    /// 1 GiB.
    #[serde(rename = "1Gi")]
    Gib1,
}

/// What the machine boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BootWish {
    /// Kernel file on the host (bzImage or ELF vmlinux), inside an allowed directory. Default: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial RAM file system on the host, inside an allowed directory. Default: the image's, if the kernel is the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line. Default: the image's, else `console=ttyS0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// A network interface on a tap device that exists on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkWish {
    /// Name of the tap device.
    pub tap: String,
    /// MAC address. Default: a locally administered one that follows from the machine's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Pairs of queues, 1–8. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough_to_write_and_defaults_are_stated() {
        let spec: VmSpec = serde_json::from_str(r#"{"name": "web"}"#).unwrap();
        assert_eq!((spec.cpus, spec.memory.to_string()), (1, "512Mi".to_owned()));
    }

    #[test]
    fn unknown_fields_are_refused_by_name_at_every_level() {
        for text in [
            r#"{"name": "a", "cpu": 1}"#,
            r#"{"name": "a", "networks": [{"tap": "t", "bridge": "b"}]}"#,
        ] {
            let error = serde_json::from_str::<VmSpec>(text).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }
}
