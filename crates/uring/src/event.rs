//! Event descriptors of the machine (`vmm-sys-util`'s), as files of an executor.
#![expect(unsafe_code, reason = "vmm-sys-util lends its descriptor only as a number")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

use crate::file::File;

impl File {
    /// Another descriptor of the same eventfd, for [`crate::Ring::read_event`].
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn of_event(event: &EventFd) -> io::Result<Self> {
        // SAFETY: `event` owns the descriptor and is borrowed for longer than this is used.
        let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        Self::dup(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Executor;

    #[test]
    fn counts_what_the_machine_rang() {
        let event = EventFd::new(0).unwrap();
        event.write(3).unwrap();
        let file = File::of_event(&event).unwrap();
        let mut executor = Executor::new(8).unwrap();
        let ring = executor.ring();
        assert_eq!(executor.block_on(ring.read_event(&file)).unwrap().unwrap(), 3);
    }
}
