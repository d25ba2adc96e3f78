//! How a raw image is to be used.

use disk::Access;

/// Whether the host's page cache is between guest and store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// It is: fast, and what a write leaves there is durable after a flush.
    #[default]
    Cached,
    /// It is not (`O_DIRECT`): steady, and no second copy in host memory.
    Direct,
}

/// Logical sector size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SectorSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl SectorSize {
    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// What the bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// They are the guest's disk: at least one sector, and whole sectors.
    #[default]
    Disk,
    /// They hold something that knows its own size, as an image of another format, or a backing image that was never a disk by
    /// itself. May be empty and of any length: its size is that length rounded up to the sector, and what lies between reads as
    /// zeroes. Nothing is written unless a caller does.
    Container,
}

/// Whether an opening keeps others out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Locking {
    /// It does: who writes keeps out everybody, who reads those who write, QEMU included.
    #[default]
    Locked,
    /// It does not, and leaves alone what lock and what flags the opening has. To look at an image that somebody may be writing, and to see some mixture
    /// of old and new then; nothing is ever written this way.
    Look,
}

/// How to use a raw image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOptions {
    /// What to call it in messages.
    pub name: String,
    /// Whether it is written. Decides about the lock: exclusive to write, shared to read.
    pub access: Access,
    /// Whether the page cache is used.
    pub cache: CacheMode,
    /// Sector size the guest sees.
    pub sector: SectorSize,
    /// What its bytes are for.
    pub role: Role,
    /// Whether others are kept out.
    pub locking: Locking,
}

impl RawOptions {
    /// A read-write disk, cached, with 512-byte sectors.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            access: Access::ReadWrite,
            cache: CacheMode::default(),
            sector: SectorSize::default(),
            role: Role::default(),
            locking: Locking::default(),
        }
    }
}
