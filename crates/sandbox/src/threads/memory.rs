//! The allocator of the C library, before filters.
#![expect(unsafe_code, reason = "a setting of the C library")]

/// Less than what is mapped by itself (`M_MMAP_THRESHOLD` of mallopt(3) is 128 KiB), so that it comes from a heap.
const BLOCK_BYTES: usize = 64 << 10;
/// Several times what may lie free at a heap's end before it shrinks (`M_TRIM_THRESHOLD`, 128 KiB).
const BLOCKS: usize = 16;

/// Heaps for each processor, of which glibc has that many without being told.
const HEAPS_PER_CPU: usize = 8;

/// Says how many heaps there may be. Else the ninth thread that wants memory counts the processors, whichever that is; some
/// glibc (2.36 among them) do that in `/sys/devices/system/cpu/online`.
fn limit_heaps() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let heaps = i32::try_from(cpus.saturating_mul(HEAPS_PER_CPU)).unwrap_or(i32::MAX);
    // SAFETY: it takes numbers, and may be called at any time. Where it does nothing, all is as it was.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

/// Has glibc ask now what it asks once: before the heap of a thread shrinks for the first time it reads
/// `/proc/sys/vm/overcommit_memory`. Later that would be any thread which frees a lot, and whose filter forbids it. To be called on a
/// thread other than main, whose heap is another kind.
pub(super) fn prepare() {
    limit_heaps();
    let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| Vec::with_capacity(BLOCK_BYTES)).collect();
    // From the end of the heap to its beginning.
    while let Some(block) = blocks.pop() {
        drop(std::hint::black_box(block));
    }
}
