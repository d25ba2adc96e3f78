//! Refcounts inside of a refcount block: widths of 1 to 64 bits, big endian; narrower than a byte, the lowest bits come
//! first (specification, "Host cluster management").

/// Refcount number `index` of `block`, whose width is `1 << order` bits. 0 beyond the block's end.
pub fn get(block: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let (byte, shift, mask) = narrow(order, index);
        return block.get(byte).map_or(0, |&byte| u64::from(byte >> shift & mask));
    }
    let width = 1usize << (order.min(6) - 3);
    let bytes = index
        .checked_mul(width)
        .and_then(|at| block.get(at..at.checked_add(width)?));
    bytes.map_or(0, |bytes| bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

/// Sets refcount number `index` of `block`, cut to its width. Does nothing beyond the block's end.
pub fn set(block: &mut [u8], order: u32, index: usize, count: u64) {
    if order < 3 {
        let (byte, shift, mask) = narrow(order, index);
        if let Some(byte) = block.get_mut(byte) {
            let low = count.to_le_bytes()[0] & mask;
            *byte = *byte & !(mask << shift) | low << shift;
        }
        return;
    }
    let width = 1usize << (order.min(6) - 3);
    let bytes = index
        .checked_mul(width)
        .and_then(|at| block.get_mut(at..at.checked_add(width)?));
    if let Some(bytes) = bytes {
        for (byte, value) in bytes.iter_mut().rev().zip(count.to_le_bytes()) {
            *byte = value;
        }
    }
}

/// Byte, shift and mask of a refcount of less than 8 bits.
fn narrow(order: u32, index: usize) -> (usize, u32, u8) {
    let per_byte = 8usize >> order;
    let place = u32::try_from(index % per_byte).unwrap_or_default();
    (index / per_byte, place << order, u8::MAX >> (8 - (1 << order)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lowest_bits_come_first_and_bytes_are_big_endian() {
        assert_eq!((get(&[0b0000_0010], 0, 1), get(&[0b1101_0000], 1, 2)), (1, 1));
        assert_eq!(get(&[0, 0, 1, 2], 4, 1), 0x102);
        assert_eq!(get(&[1, 2, 3, 4, 5, 6, 7, 8], 6, 0), 0x0102_0304_0506_0708);
        assert_eq!(get(&[1, 2], 5, 0), 0);
    }

    proptest! {
        #[test]
        fn what_is_set_is_got_and_neighbours_stay(order in 0u32..=6, index in 0usize..300, count: u64, fill: u8) {
            let mut block = vec![fill; 128];
            let before: Vec<u64> = (0..300).map(|i| get(&block, order, i)).collect();
            set(&mut block, order, index, count);
            let entries = (128 * 8) >> order;
            for (i, &old) in before.iter().enumerate() {
                let expected = if i == index && i < entries { count & (u64::MAX >> (64 - (1 << order))) } else { old };
                prop_assert_eq!(get(&block, order, i), expected);
            }
        }
    }
}
