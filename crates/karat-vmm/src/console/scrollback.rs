//! The last of what a guest said, addressed by how much it has said in all.

use std::collections::VecDeque;

/// Keeps the newest bytes of a stream. Positions count all bytes ever pushed, so a reader that remembers its position knows
/// what it missed.
pub(crate) struct Scrollback {
    bytes: VecDeque<u8>,
    limit: usize,
    end: u64,
}

impl Scrollback {
    /// An empty one that keeps up to `limit` bytes.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            end: 0,
        }
    }

    /// Appends, and forgets the oldest bytes where there are too many.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let fresh = bytes.len().saturating_sub(self.limit);
        let bytes = bytes.get(fresh..).unwrap_or_default();
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// Position of the oldest byte that is kept.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Position behind the newest byte.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes from `position` on, in up to two pieces; from the oldest on when that one is gone.
    pub(crate) fn from(&self, position: u64) -> [&[u8]; 2] {
        let skip = usize::try_from(position.saturating_sub(self.start())).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        [
            first.get(skip..).unwrap_or_default(),
            second.get(skip.saturating_sub(first.len())..).unwrap_or_default(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(scrollback: &Scrollback, position: u64) -> Vec<u8> {
        scrollback.from(position).concat()
    }

    #[test]
    fn keeps_the_newest_and_counts_all() {
        let mut scrollback = Scrollback::new(8);
        for chunk in ["abc", "def", "ghi"] {
            scrollback.push(chunk.as_bytes());
        }
        assert_eq!((scrollback.start(), scrollback.end()), (1, 9));
        assert_eq!(text(&scrollback, 0), b"bcdefghi");
        assert_eq!(text(&scrollback, 6), b"ghi");
        assert_eq!(text(&scrollback, 9), b"");
        assert_eq!(text(&scrollback, 99), b"");
    }

    #[test]
    fn more_than_fits_at_once_leaves_its_end() {
        let mut scrollback = Scrollback::new(4);
        scrollback.push(b"0123456789");
        assert_eq!((scrollback.start(), text(&scrollback, 0)), (6, b"6789".to_vec()));
    }

    #[test]
    fn agrees_with_a_plain_vector_at_every_wrap() {
        let mut scrollback = Scrollback::new(16);
        let mut all: Vec<u8> = Vec::new();
        for round in 0..100u8 {
            let chunk: Vec<u8> = (0..round % 7).map(|n| n ^ round).collect();
            scrollback.push(&chunk);
            all.extend(&chunk);
            for position in all.len().saturating_sub(16)..=all.len() {
                assert_eq!(text(&scrollback, position as u64), all[position..]);
            }
        }
    }
}
