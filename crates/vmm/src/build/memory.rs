//! RAM.

use guestmem::{GuestMemory, HugepageSize, MemoryConfig};
use spec::{HugePages, Memory};

use super::BuildError;

/// Fresh, zeroed RAM.
pub(super) fn build(memory: Memory) -> Result<GuestMemory, BuildError> {
    let config = MemoryConfig {
        size_bytes: memory.size_bytes,
        hugepages: memory.hugepages.map(|pages| match pages {
            HugePages::Mib2 => HugepageSize::Size2M,
            HugePages::Gib1 => HugepageSize::Size1G,
        }),
        prefault: memory.prefault,
    };
    GuestMemory::new(config).map_err(BuildError::Memory)
}
