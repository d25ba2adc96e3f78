//! The head of a zstd frame (RFC 8878 §3.1.1.1): how much memory it asks for.

/// Magic number of a frame, as stored.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames have 16 numbers; the first byte's lower half varies.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Whether a frame begins so, a skippable one too.
pub(super) fn begins(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
        || (start.get(1..4) == Some(&SKIPPABLE) && start.first().is_some_and(|byte| byte & 0xf0 == 0x50))
}

/// The window of the frame that begins so, bytes; 0 for a skippable one, `None` if it ends within its head.
pub(super) fn window_bytes(start: &[u8]) -> Option<u64> {
    if !start.starts_with(&MAGIC) {
        return Some(0);
    }
    let descriptor = *start.get(4)?;
    if descriptor & 0x20 == 0 {
        let byte = *start.get(5)?;
        let base = 1_u64 << (10 + u32::from(byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // One segment: the window is the content, whose size follows the dictionary's number.
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let at = 5 + dictionary;
    let field = |len: usize| start.get(at..at + len);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    Some(match descriptor >> 6 {
        0 => number(field(1)?),
        1 => number(field(2)?) + 256,
        2 => number(field(4)?),
        _ => number(field(8)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_as_the_format_says() {
        let head = |rest: &[u8]| window_bytes(&[&MAGIC, rest].concat());
        assert_eq!(head(&[0, 0x00]), Some(1 << 10));
        assert_eq!(head(&[0, 0x89]), Some((1 << 27) + (1 << 24)));
        assert_eq!(head(&[0x20, 77]), Some(77));
        assert_eq!(head(&[0x60, 0, 1]), Some(512));
        assert_eq!(head(&[0xe1, 9, 0, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 32));
        assert_eq!(head(&[0xe1, 9, 0]), None);
        assert_eq!(window_bytes(&[0x5f, 0x2a, 0x4d, 0x18]), Some(0));
        assert!(begins(&[0x5f, 0x2a, 0x4d, 0x18]) && !begins(&[0x6f, 0x2a, 0x4d, 0x18]));
    }
}
