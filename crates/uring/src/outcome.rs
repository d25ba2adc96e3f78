//! Results of system calls.

use std::io;

/// What a call returned, as the kernel's ring would say it.
pub(crate) fn outcome(returned: isize) -> i32 {
    match i32::try_from(returned) {
        Ok(count) if count >= 0 => count,
        _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}
