//! The allocator of the C library, before filters.

/// Less than what is mapped by itself (`M_MMAP_THRESHOLD` of mallopt(3) is 128 KiB), so that it comes from a heap.
const BLOCK_BYTES: usize = 64 << 10;
/// Several times what may lie free at a heap's end before it shrinks (`M_TRIM_THRESHOLD`, 128 KiB).
const BLOCKS: usize = 16;

/// Has glibc ask now what it asks once: before the heap of a thread shrinks for the first time it reads
/// `/proc/sys/vm/overcommit_memory`. Later that would be any thread which frees a lot, and whose filter forbids it. To be called on a
/// thread other than main, whose heap is another kind.
pub(super) fn prepare() {
    let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| Vec::with_capacity(BLOCK_BYTES)).collect();
    // From the end of the heap to its beginning.
    while let Some(block) = blocks.pop() {
        drop(std::hint::black_box(block));
    }
}
