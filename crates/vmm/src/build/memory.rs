//! RAM.

use guestmem::{GuestMemory, HugepageSize, MemoryConfig};
use spec::{HugePages, Memory};

use super::BuildError;
use crate::saved::Saved;

/// Fresh RAM, zeroed, or with what was saved.
pub(super) fn build(memory: Memory, saved: Option<&mut Saved<'_>>) -> Result<GuestMemory, BuildError> {
    let Some(saved) = saved else { return fresh(memory) };
    // A file has no huge pages, so a machine that wants them gets copies.
    if saved.is_lazy() && memory.hugepages.is_none() {
        return saved.map_memory(memory.size_bytes).map_err(BuildError::Restore);
    }
    let fresh = fresh(memory)?;
    saved.load_memory(&fresh).map_err(BuildError::Restore)?;
    Ok(fresh)
}

fn fresh(memory: Memory) -> Result<GuestMemory, BuildError> {
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
