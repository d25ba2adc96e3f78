//! Scattered buffers taken apart from both ends.

use guestmem::IoBuf;

/// Buffers in a row, as one stretch of bytes: headers are taken from its front, trailers from its back, whatever the
/// borders between buffers (virtio 1.2 §2.7.4: a device must not rely on the layout of descriptors).
#[derive(Debug, Default)]
pub struct Scatter {
    bufs: Vec<IoBuf>,
    len: usize,
}

impl From<Vec<IoBuf>> for Scatter {
    fn from(bufs: Vec<IoBuf>) -> Self {
        let len = bufs.iter().map(IoBuf::len).sum();
        Self { bufs, len }
    }
}

impl Scatter {
    /// All bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers, for an operation that wants them whole.
    pub fn into_bufs(self) -> Vec<IoBuf> {
        self.bufs
    }

    /// The buffers, front to back.
    pub fn bufs(&self) -> std::slice::Iter<'_, IoBuf> {
        self.bufs.iter()
    }

    /// Cuts off everything from `at` on, and returns it.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut before = 0;
        let mut index = self.bufs.len();
        let mut tail = Vec::new();
        for (position, buf) in self.bufs.iter_mut().enumerate() {
            let end = before + buf.len();
            if end > at {
                index = position;
                if at > before {
                    tail.push(buf.split_off(at - before));
                    index += 1;
                }
                break;
            }
            before = end;
        }
        tail.extend(self.bufs.drain(index..));
        let tail = Self::from(tail);
        self.len -= tail.len;
        tail
    }

    /// Takes `header.len()` bytes from the front into `header`. `None`, and nothing taken, if there are fewer.
    pub fn take_front(&mut self, header: &mut [u8]) -> Option<()> {
        if header.len() > self.len {
            return None;
        }
        let rest = self.split_off(header.len());
        let front = std::mem::replace(self, rest);
        front.copy_to(header);
        Some(())
    }

    /// Takes the last `count` bytes. `None`, and nothing taken, if there are fewer.
    pub fn take_back(&mut self, count: usize) -> Option<Self> {
        let at = self.len.checked_sub(count)?;
        Some(self.split_off(at))
    }

    /// Copies out as many bytes as both sides have, and says how many.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let mut rest = out;
        let mut copied = 0;
        for buf in &self.bufs {
            let count = buf.len().min(rest.len());
            let Some((here, later)) = rest.split_at_mut_checked(count) else {
                break;
            };
            // Cannot fail: `count` bytes are in `buf`.
            let _ = buf.copy_to(0, here);
            copied += count;
            rest = later;
        }
        copied
    }

    /// Copies in as many bytes as both sides have, and says how many.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        self.copy_at(0, bytes)
    }

    /// Copies in from `offset` on, as many bytes as both sides have, and says how many.
    pub fn copy_at(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let mut skip = offset;
        let mut rest = bytes;
        let mut copied = 0;
        for buf in &mut self.bufs {
            let start = skip.min(buf.len());
            skip -= start;
            let count = (buf.len() - start).min(rest.len());
            let Some((here, later)) = rest.split_at_checked(count) else {
                break;
            };
            // Cannot fail: `buf` has room for `count` bytes from `start` on.
            let _ = buf.copy_from(start, here);
            copied += count;
            rest = later;
        }
        copied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scatter(parts: &[usize]) -> (Scatter, Vec<u8>) {
        let bytes: Vec<u8> = (0..251).cycle().take(parts.iter().sum()).collect();
        let mut rest = &bytes[..];
        let mut bufs = Vec::new();
        for &part in parts {
            bufs.push(IoBuf::from_bytes(&rest[..part]).unwrap());
            rest = &rest[part..];
        }
        (Scatter::from(bufs), bytes)
    }

    fn bytes(scatter: &Scatter) -> Vec<u8> {
        let mut out = vec![0; scatter.len()];
        assert_eq!(scatter.copy_to(&mut out), out.len());
        out
    }

    proptest! {
        #[test]
        fn front_and_back_are_the_same_bytes_whatever_the_borders(
            parts in proptest::collection::vec(0..9_usize, 0..6), front in 0..20_usize, back in 0..20_usize
        ) {
            let (mut whole, all) = scatter(&parts);
            let mut header = vec![0; front];
            let got = whole.take_front(&mut header);
            prop_assert_eq!(got.is_some(), front <= all.len());
            let rest = if got.is_some() { &all[front..] } else { &all[..] };
            if got.is_some() {
                prop_assert_eq!(&header, &all[..front]);
            }
            let tail = whole.take_back(back);
            prop_assert_eq!(tail.is_some(), back <= rest.len());
            let kept = if tail.is_some() { rest.len() - back } else { rest.len() };
            prop_assert_eq!(bytes(&whole), &rest[..kept]);
            if let Some(tail) = tail {
                prop_assert_eq!(bytes(&tail), &rest[kept..]);
            }
        }
    }

    #[test]
    fn copies_in_what_fits() {
        let (mut whole, _) = scatter(&[2, 3]);
        assert_eq!(whole.copy_from(b"abcdefg"), 5);
        assert_eq!(bytes(&whole), b"abcde");
        assert_eq!(whole.copy_from(b"xyz"), 3);
        assert_eq!(bytes(&whole), b"xyzde");
        assert_eq!(whole.copy_at(1, b"12"), 2);
        assert_eq!(whole.copy_at(4, b"34"), 1);
        assert_eq!(whole.copy_at(9, b"5"), 0);
        assert_eq!(bytes(&whole), b"x12d3");
    }
}
