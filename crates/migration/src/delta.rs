//! What changed in a page since it was last sent.
//!
//! A delta is changes in ascending order, each: bytes to skip that stay as they were (2), count *n* of changed bytes, at least
//! 1 (2), the *n* new bytes. What follows the last change stays. An empty delta is a page that did not change after all.

use crate::page_set::PAGE_BYTES;

/// Longest delta that is worth it, bytes: half a page.
pub const DELTA_BYTES_MAX: usize = PAGE_BYTES / 2;
/// Equal bytes that end a change: fewer cost less when they are sent again than a new change does.
const GAP_BYTES: usize = 8;

/// A delta that does not fit a page.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the delta reaches beyond its page or breaks off")]
pub struct DeltaError;

/// Appends to `out` what makes `new` of `old`; false, and `out` as it was, when that is longer than [`DELTA_BYTES_MAX`].
pub fn encode(old: &[u8; PAGE_BYTES], new: &[u8; PAGE_BYTES], out: &mut Vec<u8>) -> bool {
    let begin = out.len();
    let mut at = 0;
    while let Some(skip) = old.iter().zip(new).skip(at).position(|(old, new)| old != new) {
        let first = at + skip;
        let mut end = first + 1;
        let mut equal = 0;
        for (old, new) in old.iter().zip(new).skip(end) {
            equal = if old == new { equal + 1 } else { 0 };
            end += 1;
            if equal == GAP_BYTES {
                break;
            }
        }
        end -= equal;
        let (Ok(skip), Ok(count)) = (u16::try_from(skip), u16::try_from(end - first)) else {
            return false;
        };
        if out.len() - begin + 4 + usize::from(count) > DELTA_BYTES_MAX {
            out.truncate(begin);
            return false;
        }
        out.extend(skip.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend(new.get(first..end).unwrap_or_default());
        at = end;
    }
    true
}

/// Makes of `page`, which is as it was last sent, what it is now. On an error `page` is something in between.
pub fn apply(delta: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<(), DeltaError> {
    let mut left = delta;
    let mut room = page.as_mut_slice();
    while let Some((head, rest)) = left.split_first_chunk::<4>() {
        let [s0, s1, c0, c1] = *head;
        let (skip, count) = (u16::from_le_bytes([s0, s1]), usize::from(u16::from_le_bytes([c0, c1])));
        let (bytes, rest) = rest.split_at_checked(count).ok_or(DeltaError)?;
        let (_, after) = room.split_at_mut_checked(usize::from(skip)).ok_or(DeltaError)?;
        let (target, after) = after.split_at_mut_checked(count).ok_or(DeltaError)?;
        if count == 0 {
            return Err(DeltaError);
        }
        target.copy_from_slice(bytes);
        room = after;
        left = rest;
    }
    if left.is_empty() { Ok(()) } else { Err(DeltaError) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delta_makes_the_new_page(changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..200)) {
            let old: [u8; PAGE_BYTES] = std::array::from_fn(|at| u8::try_from(at % 251).unwrap());
            let mut new = old;
            for (at, byte) in changes {
                new[at] = byte;
            }
            let mut delta = vec![1, 2, 3];
            if encode(&old, &new, &mut delta) {
                let mut page = old;
                apply(&delta[3..], &mut page).unwrap();
                prop_assert!(page == new);
                prop_assert!(delta.len() - 3 <= DELTA_BYTES_MAX);
            } else {
                prop_assert_eq!(delta.len(), 3);
            }
        }

        #[test]
        fn any_bytes_are_a_delta_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = apply(&bytes, &mut [0; PAGE_BYTES]);
        }
    }

    #[test]
    fn what_changed_all_over_is_no_delta() {
        assert!(!encode(&[0; PAGE_BYTES], &[1; PAGE_BYTES], &mut Vec::new()));
        let mut same = Vec::new();
        assert!(encode(&[3; PAGE_BYTES], &[3; PAGE_BYTES], &mut same) && same.is_empty());
        assert_eq!(apply(&[0, 0, 0, 0], &mut [0; PAGE_BYTES]), Err(DeltaError));
        assert_eq!(apply(&[255, 15, 2, 0, 1, 1], &mut [0; PAGE_BYTES]), Err(DeltaError));
    }
}
