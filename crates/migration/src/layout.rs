//! Where guest RAM is, as far as both sides must agree on it.

use sha2::{Digest, Sha256};

use crate::page_set::{PAGE_BYTES, PAGES_MAX};

/// The regions of guest RAM in ascending order. Pages are numbered over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamLayout {
    regions: Vec<(u64, u64)>,
    pages: u64,
}

/// Why regions are no layout.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Not on page bounds, or empty.
    #[error("the RAM region at {0:#x} is not made of whole pages")]
    Unaligned(u64),
    /// Two regions overlap, or they are not in ascending order.
    #[error("the RAM region at {0:#x} begins before the one in front of it ends")]
    Overlap(u64),
    /// No RAM, or more than the protocol can number.
    #[error("{0} pages of RAM; 1 to {PAGES_MAX} can be moved")]
    Size(u64),
}

impl RamLayout {
    /// From (guest-physical address, bytes) of each region.
    pub fn new(regions: &[(u64, u64)]) -> Result<Self, LayoutError> {
        let page = PAGE_BYTES as u64;
        let mut end = 0;
        let mut pages = 0_u64;
        for &(start, bytes) in regions {
            if start % page != 0 || bytes % page != 0 || bytes == 0 {
                return Err(LayoutError::Unaligned(start));
            }
            if start < end {
                return Err(LayoutError::Overlap(start));
            }
            end = start.checked_add(bytes).ok_or(LayoutError::Overlap(start))?;
            pages = pages.saturating_add(bytes / page);
        }
        if pages == 0 || pages > PAGES_MAX {
            return Err(LayoutError::Size(pages));
        }
        Ok(Self {
            regions: regions.to_vec(),
            pages,
        })
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// What both sides compare: SHA-256 over address and size of each region, little endian.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (start, bytes) in &self.regions {
            hash.update(start.to_le_bytes());
            hash.update(bytes.to_le_bytes());
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_whole_pages_in_order() {
        let two = RamLayout::new(&[(0, 8192), (1 << 32, 4096)]).unwrap();
        assert_eq!(two.pages(), 3);
        assert_ne!(two.digest(), RamLayout::new(&[(0, 12288)]).unwrap().digest());
        assert_eq!(
            RamLayout::new(&[(0, 8192), (4096, 4096)]),
            Err(LayoutError::Overlap(4096))
        );
        assert_eq!(RamLayout::new(&[(0, 100)]), Err(LayoutError::Unaligned(0)));
        assert_eq!(RamLayout::new(&[]), Err(LayoutError::Size(0)));
    }
}
