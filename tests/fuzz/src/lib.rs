//! What the targets share.

#[path = "../../../crates/disk-qcow2/tests/support/memory.rs"]
mod memory;

use std::cell::RefCell;
use std::sync::Arc;

use disk::{Access, Disk};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
pub use memory::Memory;

/// Files do not grow beyond this, bytes.
pub const FILE_BYTES: u64 = 16 << 20;

thread_local! {
    static EXECUTOR: RefCell<uring::Executor> = RefCell::new(uring::Executor::new(64).expect("io_uring"));
}

/// Runs a future on this thread's executor.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    EXECUTOR.with_borrow_mut(|executor| executor.block_on(future).expect("a ring that works"))
}

/// Opens an image for reading and reads up to 256 KiB at its start and at its end.
pub async fn open_and_read(image: Memory) {
    let options = Qcow2Options {
        access: Access::ReadOnly,
        cache_bytes: 1 << 20,
        ..Qcow2Options::named("fuzz")
    };
    let Ok(disk) = Qcow2Disk::open(Arc::new(image), options).await else {
        return;
    };
    let Ok(io) = disk.open_queue() else { return };
    let size = disk.geometry().size_bytes;
    let len = size.min(256 << 10);
    for offset in [0, size - len] {
        let buf = IoBuf::heap(len as usize, 512).expect("memory");
        let _ = io.read(offset, vec![buf]).await;
        let _ = io.extents(offset, len).await;
    }
}
