//! What a machine is: as users write it, and as it was checked.
//!
//! Two types for one thing, on purpose. [`VmSpec`] is what somebody wrote; it promises nothing. [`VmPlan`] and
//! [`MachineSpec`] come only from validation, which reports every problem at once; whoever holds one may rely on it.
//! `VmPlan` still names files and images of the host, `MachineSpec` is what the machine process sees: no path, no name to
//! look up, since all it needs is handed to it as open files.

mod disk;
mod host;
mod id;
mod machine;
mod name;
mod plan;
mod problem;
mod quantity;
#[cfg(feature = "test-utils")]
pub mod testing;
mod vm;

pub use disk::{
    DISK_SERIAL_MAX, DiskBus, DiskCache, DiskFormat, DiskLimits, DiskPlan, DiskSector, DiskSectorError, DiskSource,
    DiskSpec, DiskWish, ROOT_DISK,
};
pub use host::HostLimits;
pub use id::{
    GenerationId, ImageDigest, ImageDigestError, MacAddress, MacAddressError, MigrationId, OperationId, SnapshotId,
    VmId, VolumeId,
};
pub use machine::{Cpus, HugePages, MachineParts, MachineSpec, Memory, NetSpec};
pub use name::{Name, NameError};
pub use plan::{BootPlan, NetPlan, VmPlan};
pub use problem::{Problem, Problems};
pub use quantity::{ByteSize, ByteSizeError};
pub use vm::{BootWish, HugePagesWish, MemoryBacking, NetworkWish, Topology, VmSpec};
