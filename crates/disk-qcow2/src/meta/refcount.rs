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

/// The first refcount of `block` from number `from` on that is 0.
pub fn first_free(block: &[u8], order: u32, from: usize) -> Option<usize> {
    let entries = block.len().checked_mul(8)? >> order;
    let mut index = from;
    while index < entries {
        // Eight bytes at once where a whole word has no zero among its counts (the widths that images mostly have).
        if order == 4 && index.is_multiple_of(4) {
            let word = block.get(index * 2..).and_then(|rest| rest.first_chunk::<8>());
            if let Some(word) = word.map(|word| u64::from_be_bytes(*word))
                && word.wrapping_sub(LANES) & !word & (LANES << 15) == 0
            {
                index += 4;
                continue;
            }
        }
        if get(block, order, index) == 0 {
            return Some(index);
        }
        index += 1;
    }
    None
}

/// The lowest bit of each 16-bit lane: subtracting it borrows from the highest bit of the lanes that are 0.
const LANES: u64 = 0x0001_0001_0001_0001;

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
        fn the_first_free_one_is_found(order in 0u32..=6, from in 0usize..70, used in prop::collection::vec(0u8..4, 64)) {
            let mut block = vec![0; 64];
            let entries = (64 * 8) >> order;
            for index in 0..entries {
                set(&mut block, order, index, u64::from(used[index % 64].min(1)) * (1 + index as u64 % 2) % (1 << (1u64 << order).min(32)));
            }
            let expected = (from..entries).find(|&index| get(&block, order, index) == 0);
            prop_assert_eq!(first_free(&block, order, from), expected);
        }

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
