//! Guest RAM: who owns it, who may touch it, and how.
//!
//! [`GuestMemory`] owns a machine's RAM: one memfd, mapped shared, cut into the regions of [`layout`]. It clones cheaply and
//! the mapping lives as long as any clone, or any [`IoBuf`] made from it. It dereferences to [`GuestRam`], so the accessors of
//! [`Bytes`] (`read_obj`, `write_slice`, `load`, `store`, …) and `virtio-queue` take it as it is.
//!
//! Nothing here ever lends a `&[u8]` into guest RAM: the guest writes it while we look. Bytes are copied by volatile
//! accessors, or travel as [`IoBuf`]s that only the kernel and copies look into.
//!
//! Pages written by device code are recorded in a [`DirtyLog`] per region once [`GuestMemory::start_dirty_log`] was called;
//! what vCPUs write is recorded by KVM per slot. Whoever needs "all dirty pages" takes both and merges them with a bitwise
//! or: both use one bit per 4 KiB page, bit 0 of word 0 being the first page of the region.

mod absent;
mod dirty;
mod iobuf;
pub mod layout;
mod memory;

pub use absent::Absent;
pub use dirty::DirtyLog;
pub use iobuf::{IoBuf, IoBufError};
pub use memory::{CreateError, GuestMemory, GuestRam, HugepageSize, MemoryConfig, Region};

/// The memory traits and types every other crate uses, from one place.
pub use vm_memory::{
    Address, AtomicAccess, Be16, Be32, Be64, ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend,
    GuestMemoryError, GuestMemoryRegion, Le16, Le32, Le64, MemoryRegionAddress, Permissions, ReadVolatile,
    VolatileMemory, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// `vm_memory::GuestMemory`, the trait `virtio-queue` asks for, under a name that leaves ours free.
pub use vm_memory::GuestMemory as GuestMemoryAccess;
