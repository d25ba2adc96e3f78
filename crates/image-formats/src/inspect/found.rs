//! What the readers of single formats are asked, and what they answer.

use disk::probe::Format;

/// A piece of the image that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Where, bytes.
    pub(super) at: u64,
    /// How long, bytes.
    pub(super) len: usize,
}

/// What is known when no more than the end can change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) format: Format,
    /// What its header says; `None` where the length decides.
    pub(super) virtual_size_bytes: Option<u64>,
    /// A whole image is at least this long, bytes.
    pub(super) least_bytes: u64,
}
