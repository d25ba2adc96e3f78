//! A disk at one instant, ready to be read.

use images::LocalDisk;

use super::lineage::Lineage;
use crate::part::Part;

/// A disk that nobody writes.
pub(crate) struct Frozen {
    pub(crate) disk: LocalDisk,
    pub(crate) lineage: Lineage,
    /// The copy it is, if it is one.
    pub(crate) part: Option<Part>,
}
