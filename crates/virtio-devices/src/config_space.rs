//! Device configuration space as bytes.

/// Answers a read of any width at any offset from `bytes`; what lies past them is zero.
pub(crate) fn read(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (out, &byte) in data.iter_mut().zip(bytes.iter().skip(start)) {
        *out = byte;
    }
}

/// Lays out fields given as (offset, bytes) in a space of `N` bytes.
pub(crate) fn lay_out<const N: usize>(fields: &[(usize, &[u8])]) -> [u8; N] {
    let mut bytes = [0; N];
    for (offset, field) in fields {
        for (out, &byte) in bytes.iter_mut().skip(*offset).zip(*field) {
            *out = byte;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_any_range() {
        let bytes: [u8; 6] = lay_out(&[(0, &[1, 2]), (4, &[5, 6, 7])]);
        assert_eq!(bytes, [1, 2, 0, 0, 5, 6]);
        let mut data = [9; 4];
        read(&bytes, 4, &mut data);
        assert_eq!(data, [5, 6, 0, 0]);
        read(&bytes, u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
