//! What engines are asked for.

use std::time::Duration;

/// What is to be done, to the file and buffers of a [`Cargo`]. Says nothing about how, so that another engine may do it.
pub(crate) enum Action {
    Read { offset: u64, skip: usize },
    Write { offset: u64, skip: usize },
    Receive,
    Send,
    Sync { data_only: bool },
    Allocate { mode: i32, offset: u64, len: u64 },
    Readable,
    TakeEvent,
    Sleep(Duration),
}

/// Whether entering the kernel waits for a completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    No,
    ForOne,
}
