//! Where a thread is: return addresses, without a system call.
//!
//! The usual backtraces open the program and the list of its mappings, and ask for the current directory. A confined thread can
//! not; it can say addresses, which `addr2line -f -e PROGRAM` turns into functions and lines.
#![expect(
    unsafe_code,
    reason = "the unwinder that the standard library is linked with, and the program's first byte"
)]

use std::ffi::{c_int, c_void};

/// Most frames that are looked at.
const FRAMES_MAX: usize = 64;

/// `_URC_NO_REASON` of the unwinder's interface (Itanium C++ ABI: exception handling, level 1): go on.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`: stop.
const STOP: c_int = 5;

unsafe extern "C" {
    /// The first byte of the program, by the linker.
    static __ehdr_start: u8;
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, data: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

/// Where calls return to, innermost first, as offsets in the program's file: what is of a library is left out.
pub fn return_offsets() -> Vec<usize> {
    let mut addresses: Vec<usize> = Vec::with_capacity(FRAMES_MAX);
    // SAFETY: `visit` has the signature the unwinder calls, does not unwind, and gets the address of `addresses`, which lives
    // until the call returns.
    unsafe { _Unwind_Backtrace(visit, (&raw mut addresses).cast()) };
    let start = (&raw const __ehdr_start).addr();
    // A program of more than 1 GiB is none of ours: beyond are libraries.
    let offsets = addresses.iter().filter_map(|address| address.checked_sub(start));
    offsets.filter(|offset| *offset < 1 << 30).collect()
}

extern "C" fn visit(frame: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the address of the vector that `return_offsets` passes, and nobody else uses it meanwhile.
    let addresses = unsafe { &mut *data.cast::<Vec<usize>>() };
    if addresses.len() == FRAMES_MAX {
        return STOP;
    }
    // SAFETY: `frame` is what the unwinder called this with.
    addresses.push(unsafe { _Unwind_GetIP(frame) });
    GO_ON
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deeper(count: usize) -> Vec<usize> {
        if count == 0 {
            return return_offsets();
        }
        let mut offsets = deeper(count - 1);
        offsets.push(0);
        offsets
    }

    #[test]
    fn every_call_is_a_frame() {
        let (few, many) = (deeper(1), deeper(11));
        let frames = |offsets: &[usize]| offsets.iter().filter(|offset| **offset > 0).count();
        assert_eq!(frames(&many), frames(&few) + 10);
        assert!(deeper(200).len() >= 200 + FRAMES_MAX / 2, "and there is an end of them");
    }
}
